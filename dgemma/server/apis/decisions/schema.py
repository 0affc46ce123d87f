"""Requests for decisions, in OpenAI's form and in System One's, and how answers look in each.

Knows the two forms and the questions of `dgemma.compose`. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from dgemma.compose.decide import Answer
from dgemma.compose.questions import (
    MOST_CHOICES,
    Choice,
    Predicate,
    Question,
    Score,
    questions_of,
)
from dgemma.errors import InvalidRequest, bad_field
from dgemma.server.accounting import DiffusionUsage
from dgemma.server.limits import check_schema
from dgemma.server.request_body import Body
from dgemma.server.settings import ServerLimits

MOST_QUESTIONS, MOST_SAMPLES, MOST_READINGS = 64, 64, 256
"""The last bounds questions times samples, each of which is a reading of its own."""


class Option(Body):
    """A value that may be chosen, and its meaning."""

    value: str
    description: str = ""


class Level(Body):
    """A level of a score, and its meaning."""

    label: str
    description: str = ""


class _Question(Body):
    instructions: str = ""


class PredicateQuestion(_Question):
    """Is it so?"""

    type: Literal["predicate"]
    name: str

    def question(self) -> Question:
        """The same for `dgemma.compose`."""
        return Predicate(self.name, self.instructions)


class ChoiceQuestion(_Question):
    """Which of these?"""

    type: Literal["choice"]
    name: str
    choices: list[Option] = Field(min_length=2, max_length=MOST_CHOICES)

    def question(self) -> Question:
        """The same for `dgemma.compose`."""
        pairs = [(option.value, option.description) for option in self.choices]
        return Choice(self.name, self.instructions, _once(self.name, pairs))


class ScoreQuestion(_Question):
    """How much? Levels go from the least to the most."""

    type: Literal["score"]
    name: str
    levels: list[Level] = Field(min_length=2, max_length=MOST_CHOICES)

    def question(self) -> Question:
        """The same for `dgemma.compose`."""
        pairs = [(level.label, level.description) for level in self.levels]
        return Score(self.name, self.instructions, _once(self.name, pairs))


AnyQuestion = Annotated[
    PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")
]


class _Reading(Body):
    """How the questions are read: fields of both forms.

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
    questions: list[AnyQuestion] | None = Field(
        default=None, min_length=1, max_length=MOST_QUESTIONS
    )
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="of an object whose properties are asked for, in "
        "place of `questions`",
    )  # fmt: skip

    def asked(self, limits: ServerLimits) -> list[Question]:
        """The questions for `dgemma.compose`; those of a schema are its properties.

        Raises:
            InvalidRequest: a name, value or label comes twice, a schema that cannot be enforced, or
                not one of questions and schema.
            Refusal: a limit is passed.
        """
        if (self.questions is None) is (self.schema_ is None):
            raise bad_field("questions", "or a schema must be given, and not both")
        if self.schema_ is not None:
            check_schema(self.schema_, "schema", limits)
            found = questions_of(self.schema_)
            if len(found) > MOST_QUESTIONS:
                raise bad_field(
                    "schema",
                    f"has {len(found)} properties, more than {MOST_QUESTIONS}; ask in several "
                    "requests",
                )
            return found
        names = [one.name for one in self.questions or ()]
        for name in names:
            if names.count(name) > 1:
                raise bad_field("questions", f"has the name {name!r} twice; give each its own")
        return [one.question() for one in self.questions or ()]


class NoulQuestion(_Question):
    """Is it so? `criteria` may define true and false."""

    type: Literal["noul"]
    criteria: dict[Literal["true", "false"], str] | None = None

    def question(self, name: str) -> Question:
        """The same for `dgemma.compose`; the criteria become a part of the instructions."""
        meant = {"true": "yes", "false": "no"}
        lines = [f"{meant[key]}: {text}" for key, text in (self.criteria or {}).items()]
        if lines and not self.instructions:
            raise bad_field(f"questions.{name}", "has criteria, which need instructions; add some")
        return Predicate(name, "\n".join([self.instructions, *lines]))


class NamedChoice(_Question):
    """Which of these? `criteria` has the values with their meanings."""

    type: Literal["choice"]
    criteria: dict[str, str] = Field(min_length=2, max_length=MOST_CHOICES)

    def question(self, name: str) -> Question:
        """The same for `dgemma.compose`."""
        return Choice(name, self.instructions, dict(self.criteria))


class NamedScore(_Question):
    """How much? `criteria` has the levels from the least to the most."""

    type: Literal["score"]
    criteria: list[str] = Field(min_length=2, max_length=MOST_CHOICES)

    def question(self, name: str) -> Question:
        """The same for `dgemma.compose`."""
        pairs = [(level, "") for level in self.criteria]
        return Score(name, self.instructions, _once(name, pairs))


NamedQuestion = Annotated[NoulQuestion | NamedChoice | NamedScore, Field(discriminator="type")]


class SystemOneRequest(_Reading):
    """System One's form: questions have their names as keys."""

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {"prompt": ("state",)}

    state: str | list[dict[str, Any]]
    questions: dict[str, NamedQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)

    def asked(self) -> list[Question]:
        """The questions for `dgemma.compose`.

        Raises:
            InvalidRequest: a level comes twice, or a noul has criteria without instructions.
        """
        return [one.question(name) for name, one in self.questions.items()]


def check_size(questions: int, samples: int) -> None:
    """Refuse more readings than one request may start.

    Raises:
        InvalidRequest: too many.
    """
    if questions * samples > MOST_READINGS:
        raise bad_field(
            "samples", f"{samples} of {questions} questions are {questions * samples} readings, "
            f"more than {MOST_READINGS}; lower samples, ask jointly, or ask in several requests",
        )  # fmt: skip


def openai_answer(answer: Answer) -> dict[str, Any]:
    """An answer in OpenAI's form; the reply's schema picks the fields of its type."""
    probabilities = [
        {"value": number if answer.type == "score" else value, "label": value, "probability": part}
        for number, (value, part) in enumerate(answer.probabilities, 1)
    ]
    return asdict(answer) | {"probabilities": probabilities}


def systemone_answer(answer: Answer) -> dict[str, Any]:
    """An answer in System One's form; the reply's schema picks the fields of its type."""
    shares = dict(answer.probabilities)
    found = asdict(answer) | {"noul": answer.probability, "legend": list(shares)}
    if answer.type == "predicate":
        return found | {"type": "noul"}
    return found | {"probabilities": shares if answer.type == "choice" else list(shares.values())}


def _once(name: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest(f"question {name!r}: a value comes twice; name each once")
    return found


# -- replies ---------------------------------------------------------------------------------------


class _Answered(BaseModel):
    label_mass: float = Field(
        description="probability of all choices together before they were scaled to 1; if it "
        "is small, the question was not understood"
    )
    stderr: float | None = Field(description="over the samples; null: one sample")


class PredicateAnswer(_Answered):
    """The probability of yes."""

    type: Literal["predicate"]
    name: str
    probability: float


class ValueProbability(BaseModel):
    """A value that may be chosen."""

    value: str
    probability: float


class ChoiceAnswer(_Answered):
    """The likeliest value, and the probability of each."""

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
    """The probability of yes."""

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
