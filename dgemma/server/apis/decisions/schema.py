"""Requests for decisions, in OpenAI's form and in System One's, and how answers look in each.

Knows the two forms and the questions of `dgemma.compose`. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from dgemma.compose.decide import Answer, Decision
from dgemma.compose.questions import Choice, Predicate, Question, Score
from dgemma.errors import InvalidRequest
from dgemma.server.reply_schema import DiffusionUsage
from dgemma.server.request_body import Body

MOST_QUESTIONS, MOST_OPTIONS, MOST_SAMPLES, MOST_READINGS = 64, 255, 64, 256
"""The last bounds questions times samples, each of which is a reading of its own."""


class Option(Body):
    """A value that may be chosen, and what it means."""

    value: str
    description: str = ""


class Level(Body):
    """A level of a score, and what it means."""

    label: str
    description: str = ""


class PredicateQuestion(Body):
    """Is it so?"""

    type: Literal["predicate"]
    name: str
    instructions: str = ""


class ChoiceQuestion(Body):
    """Which of these?"""

    type: Literal["choice"]
    name: str
    instructions: str = ""
    choices: list[Option] = Field(min_length=2, max_length=MOST_OPTIONS)


class ScoreQuestion(Body):
    """How much? Levels stand from the least to the most."""

    type: Literal["score"]
    name: str
    instructions: str = ""
    levels: list[Level] = Field(min_length=2, max_length=MOST_OPTIONS)


AnyQuestion = Annotated[
    PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")
]


class _Reading(Body):
    """How the questions are read: fields that both forms have beside their own.

    Attributes:
        samples: noise draws that are averaged; more than one gives each answer its `stderr`.
        joint: all questions on one canvas, where answers see each other's places.
        seed: of the first draw.
        canvas_length: a narrower canvas costs less.
    """

    model: str | None = None
    samples: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    joint: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    canvas_length: int | None = Field(default=None, ge=1)


class DecisionsRequest(_Reading):
    """OpenAI's form."""

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {"prompt": ("input",), "state": ("input",)}

    input: str | list[dict[str, Any]]
    questions: list[AnyQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)


class NoulQuestion(Body):
    """Is it so? `criteria` may say what true and false mean."""

    type: Literal["noul"]
    instructions: str = ""
    criteria: dict[Literal["true", "false"], str] | None = None


class NamedChoice(Body):
    """Which of these? `criteria` has the values with their meanings."""

    type: Literal["choice"]
    instructions: str = ""
    criteria: dict[str, str] = Field(min_length=2, max_length=MOST_OPTIONS)


class NamedScore(Body):
    """How much? `criteria` has the levels from the least to the most."""

    type: Literal["score"]
    instructions: str = ""
    criteria: list[str] = Field(min_length=2, max_length=MOST_OPTIONS)


NamedQuestion = Annotated[NoulQuestion | NamedChoice | NamedScore, Field(discriminator="type")]


class SystemOneRequest(_Reading):
    """System One's form: questions have their names as keys."""

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {"prompt": ("state",)}

    state: str | list[dict[str, Any]]
    questions: dict[str, NamedQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)


def asked(questions: Sequence[AnyQuestion]) -> list[Question]:
    """OpenAI's questions as ours.

    Raises:
        InvalidRequest: a name, value or label comes twice.
    """
    names = [one.name for one in questions]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(
                f"questions: the name {name!r} comes twice; give each its own", field="questions"
            )
    out: list[Question] = []
    for one in questions:
        if isinstance(one, PredicateQuestion):
            out.append(Predicate(one.name, one.instructions))
        elif isinstance(one, ChoiceQuestion):
            pairs = [(option.value, option.description) for option in one.choices]
            out.append(Choice(one.name, one.instructions, _once(one.name, pairs)))
        else:
            pairs = [(level.label, level.description) for level in one.levels]
            out.append(Score(one.name, one.instructions, _once(one.name, pairs)))
    return out


def named(questions: Mapping[str, NamedQuestion]) -> list[Question]:
    """System One's questions as ours; what true and false mean goes into the instructions.

    Raises:
        InvalidRequest: a level comes twice, or criteria without instructions for a noul.
    """
    out: list[Question] = []
    for name, one in questions.items():
        if isinstance(one, NoulQuestion):
            meant = {"true": "yes", "false": "no"}
            lines = [f"{meant[key]}: {text}" for key, text in (one.criteria or {}).items()]
            if lines and not one.instructions:
                raise InvalidRequest(
                    f"questions.{name}: criteria need instructions that they belong to",
                    field=f"questions.{name}",
                )
            out.append(Predicate(name, "\n".join([one.instructions, *lines])))
        elif isinstance(one, NamedChoice):
            out.append(Choice(name, one.instructions, dict(one.criteria)))
        else:
            pairs = [(level, "") for level in one.criteria]
            out.append(Score(name, one.instructions, _once(name, pairs)))
    return out


def check_size(questions: int, samples: int) -> None:
    """Refuse more readings than one request may start.

    Raises:
        InvalidRequest: too many.
    """
    if questions * samples > MOST_READINGS:
        raise InvalidRequest(
            f"samples {samples} of {questions} questions are {questions * samples} readings, more "
            f"than {MOST_READINGS}; lower samples, ask jointly, or ask in several requests",
            field="samples",
        )


def openai_answers(
    names: Sequence[str], decision: Decision, refused: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Answers in the order of the questions' names; `refused`: why there is none, by name."""
    out = []
    for name in names:
        if name in refused:
            out.append({"type": "refusal", "name": name, "refusal": refused[name]})
            continue
        answer = decision[name]
        body: dict[str, Any] = {"type": answer.type, "name": answer.name}
        pairs = answer.probabilities
        if answer.type == "predicate":
            body["probability"] = answer.probability
        elif answer.type == "choice":
            body["choice"] = answer.choice
            body["probabilities"] = [{"value": v, "probability": p} for v, p in pairs]
            body["confidence"] = answer.confidence
        else:
            body["score"] = answer.score
            body["probabilities"] = [
                {"value": n, "label": v, "probability": p} for n, (v, p) in enumerate(pairs, 1)
            ]
            body["confidence"] = answer.confidence
        out.append(body | _extras(answer))
    return out


def systemone_answers(decision: Decision) -> dict[str, dict[str, Any]]:
    """Answers by their names."""
    out: dict[str, dict[str, Any]] = {}
    for answer in decision.answers:
        body: dict[str, Any]
        if answer.type == "predicate":
            body = {"type": "noul", "noul": answer.probability}
        elif answer.type == "choice":
            body = {"type": "choice", "choice": answer.choice}
            body["probabilities"] = dict(answer.probabilities)
            body["confidence"] = answer.confidence
        else:
            body = {"type": "score", "score": answer.score}
            body["legend"] = [value for value, _ in answer.probabilities]
            body["probabilities"] = [p for _, p in answer.probabilities]
            body["confidence"] = answer.confidence
        out[answer.name] = body | _extras(answer)
    return out


def _extras(answer: Answer) -> dict[str, Any]:
    return {"label_mass": answer.label_mass, "stderr": answer.stderr}


def _once(name: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest(f"question {name!r}: a value comes twice; name each once")
    return found


# -- replies ---------------------------------------------------------------------------------------


class _Answered(BaseModel):
    label_mass: float = Field(
        description="probability of all choices together before they were scaled to 1; where it "
        "is small the question was not understood"
    )
    stderr: float | None = Field(description="over the samples; null: one sample")


class PredicateAnswer(_Answered):
    """How likely it is so."""

    type: Literal["predicate"]
    name: str
    probability: float


class ValueProbability(BaseModel):
    """A value that may be chosen."""

    value: str
    probability: float


class ChoiceAnswer(_Answered):
    """The likeliest value, and how likely it and all others are."""

    type: Literal["choice"]
    name: str
    choice: str
    probabilities: list[ValueProbability]
    confidence: float


class LevelProbability(BaseModel):
    """A level; the first is worth 1."""

    value: int
    label: str
    probability: float


class ScoreAnswer(_Answered):
    """The expected level."""

    type: Literal["score"]
    name: str
    score: float
    probabilities: list[LevelProbability]
    confidence: float


class RefusalAnswer(BaseModel):
    """No answer, and why: this model cannot tell the choices apart."""

    type: Literal["refusal"]
    name: str
    refusal: str


AnyAnswer = Annotated[
    PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer, Field(discriminator="type")
]


class DecisionUsage(BaseModel):
    """Tokens of all readings; nothing is written."""

    input_tokens: int
    output_tokens: Literal[0]
    total_tokens: int


class _Decided(BaseModel):
    model: str
    seed: int = Field(description="of the first sample")
    usage: DecisionUsage
    diffusion_usage: DiffusionUsage


class DecisionsReply(_Decided):
    """OpenAI's form: answers in the order of the questions."""

    object: Literal["decision"]
    answers: list[AnyAnswer]


class NoulAnswer(_Answered):
    """How likely it is so."""

    type: Literal["noul"]
    noul: float


class NamedChoiceAnswer(_Answered):
    """The likeliest value."""

    type: Literal["choice"]
    choice: str
    probabilities: dict[str, float]
    confidence: float


class NamedScoreAnswer(_Answered):
    """The expected level; the first is worth 1."""

    type: Literal["score"]
    score: float
    legend: list[str]
    probabilities: list[float]
    confidence: float


AnyNamedAnswer = Annotated[
    NoulAnswer | NamedChoiceAnswer | NamedScoreAnswer, Field(discriminator="type")
]


class SystemOneReply(_Decided):
    """System One's form: answers by their names."""

    answers: dict[str, AnyNamedAnswer]
