"""Typed questions answered by probabilities: one step over a canvas whose slots are noise.

The canvas holds the form of the answer; where a choice belongs it holds noise, and the model's
own probabilities of the choices there are the answer. Nothing is generated.
Knows questions, labels and samples; knows nothing about how questions are worded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

from dgemma.compose.calibration import Calibration, softmax, tempered
from dgemma.compose.length import mean
from dgemma.compose.plan import Plan, check_facts, run, total
from dgemma.compose.questions import (
    Kind,
    Labels,
    Predicate,
    Question,
    Score,
    asking,
    kind_of,
    labels,
    questions_of,
)
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams, canvas_width, refused
from dgemma.types import CanvasControl, Output, Request, Usage

FORM = "Answer each question with its name and the answer, one line each."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question.

    Attributes:
        name, type: of the question.
        probabilities: (value, probability) of each choice in the question's order; they sum to 1.
        choice: the likeliest value.
        confidence: its probability.
        probability: of yes, for a predicate.
        score: the expected level (the first counts 1), for a score.
        stderr: standard error of `probability`, `score` or else `confidence` over the noise
            draws; None for one draw.
        label_mass: probability that the model gave to the choices together before they were
            scaled to 1; where it is small the question was not understood.
    """

    name: str
    type: Kind
    probabilities: tuple[tuple[str, float], ...]
    choice: str
    confidence: float
    probability: float | None = None
    score: float | None = None
    stderr: float | None = None
    label_mass: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Answers in the order of the questions, the seed of the first draw, and the cost.

    `thought_closed`: as of an `Output`, of every prompt.
    """

    answers: tuple[Answer, ...]
    seed: int
    usage: Usage = field(default_factory=Usage)
    thought_closed: bool = False

    def __getitem__(self, name: str) -> Answer:
        for answer in self.answers:
            if answer.name == name:
                return answer
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class _Form:
    """A prompt and a canvas with one slot for each of some questions."""

    prompt: tuple[int, ...]
    control: CanvasControl
    labels: tuple[Labels, ...]
    slots: tuple[int, ...]


def decide(
    facts: ModelFacts, state: str | Sequence[int],
    questions: Sequence[Question] | Mapping[str, Any], *, samples: int = 1, joint: bool = False,
    seed: int = 0, calibration: Calibration | None = None, canvas_length: int | None = None,
) -> Plan[Decision]:  # fmt: skip
    """Answer questions about a state.

    Args:
        facts: of the model.
        state: what the questions are about; or ids of a whole prompt, for questions without
            instructions, whose answer then begins with the canvas.
        questions: each with a name of its own; or a JSON schema, see `questions_of`.
        samples: noise draws that are averaged; their seeds count up from `seed`.
        joint: ask all questions on one canvas, where answers see each other's places; else each
            by itself, and then their order changes nothing.
        seed: 64-bit.
        calibration: temperatures for the probabilities.
        canvas_length: a narrower canvas costs less; None: the model's own.

    Raises:
        InvalidRequest: no questions, a name twice, choices that cannot be told apart, questions
            that do not fit on one canvas, instructions where the state is a whole prompt, or an
            argument of the wrong kind.
        EngineError: a request failed.
    """
    check_facts(facts)
    if isinstance(questions, Mapping):
        questions = questions_of(questions)
    _check_kinds(state, questions, samples, seed, calibration)
    _check(state, questions, joint)
    params = SamplingParams(max_steps=1, logprobs=0, canvas_length=canvas_length)
    width = canvas_width(params, facts.canvas)
    groups = [list(questions)] if joint else [[question] for question in questions]
    forms = [_form(facts, state, group, joint, width) for group in groups]
    requests = [
        _request(form, (seed + draw) % 2**64, canvas_length)
        for form in forms for draw in range(samples)
    ]  # fmt: skip
    outputs = yield from run(requests)
    answers: list[Answer] = []
    for number, (form, group) in enumerate(zip(forms, groups, strict=True)):
        own = outputs[number * samples : (number + 1) * samples]
        for place, question in enumerate(group):
            rows = [_asked(output, form, place) for output in own]
            answers.append(_answer(question, form.labels[place], rows, calibration))
    return Decision(
        answers=tuple(answers), seed=seed, usage=total(outputs),
        thought_closed=all(output.thought_closed for output in outputs),
    )  # fmt: skip


def _check_kinds(
    state: object, questions: object, samples: object, seed: object, calibration: object
) -> None:
    """Refuse arguments of the wrong kind, which a type checker would have found."""
    if isinstance(questions, str) or not isinstance(questions, Sequence):
        raise refused("questions", "be a list; for one alone write [question]")
    for one in questions:
        if not isinstance(one, Question):
            raise InvalidRequest(
                f"a question is a Predicate, a Choice or a Score, got {one!r}", field="questions"
            )
    if not isinstance(samples, int) or samples < 1:
        raise refused("samples", "be an integer of at least 1", samples)
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise refused("seed", "be an integer from 0 to 2**64 - 1", seed)
    if not isinstance(state, Sequence):
        raise InvalidRequest("the state must be a text, or the ids of a prompt", field="state")
    if not isinstance(calibration, (Calibration, type(None))):
        raise InvalidRequest(
            f"calibration must be a Calibration, as Calibration.load reads one, got {calibration!r}"
        )


def _check(state: str | Sequence[int], questions: Sequence[Question], joint: bool) -> None:
    if not questions:
        raise InvalidRequest("there are no questions; give at least one", field="questions")
    if not len(state):
        raise InvalidRequest("the state is empty; say what the questions are about", field="state")
    names = [question.name for question in questions]
    for name in names:
        if not isinstance(name, str) or not name or names.count(name) > 1:
            raise InvalidRequest(f"each question needs a name of its own, got {name!r}")
    for question in questions:
        if not isinstance(state, str) and (joint or question.instructions):
            raise InvalidRequest(
                f"question {question.name!r}: token ids are a whole prompt; give the state as "
                "text, or leave the instructions empty and ask separately"
            )


def labels_of(facts: ModelFacts, question: Question, joint: bool) -> Labels:
    """How the choices of a question are told apart where it is asked.

    Raises:
        InvalidRequest: they cannot be, by this model's tokens.
    """
    before = f"{question.name}: " if joint else ""
    return labels(facts.tokenizer, question, before, whole=joint)


def _form(
    facts: ModelFacts, state: str | Sequence[int], group: Sequence[Question], joint: bool,
    width: int,
) -> _Form:  # fmt: skip
    """The prompt and the canvas of some questions."""
    tokenizer = facts.tokenizer
    found = [labels_of(facts, question, joint) for question in group]
    ids: list[int] = []
    slots: list[int] = []
    for number, one in enumerate(found):
        ids += tokenizer.encode("\n") if number else []
        ids += one.lead
        slots.append(len(ids))
        ids += [-1] * (1 + one.rest)
    if not found[-1].rest:  # what ends the answer is known; else the model may need less room
        ids.append(facts.end_id)
    if len(ids) > width:
        raise InvalidRequest(
            f"the answers take {len(ids)} tokens of a canvas of {width}; ask fewer questions "
            "jointly, shorten their names, or ask separately"
        )
    ids += [-1 if found[-1].rest else facts.fill_id] * (width - len(ids))
    pinned = tuple(at for at, token in enumerate(ids) if token >= 0)
    control = CanvasControl(ids=tuple(ids), pinned=pinned, read_only=True)
    return _Form(_prompt(facts, state, group, found, joint, width), control, tuple(found),
                 tuple(slots))  # fmt: skip


def _prompt(
    facts: ModelFacts, state: str | Sequence[int], group: Sequence[Question],
    found: Sequence[Labels], joint: bool, width: int,
) -> tuple[int, ...]:  # fmt: skip
    if not isinstance(state, str):
        return facts.closed(state)
    parts = [state]
    for question, one in zip(group, found, strict=True):
        if question.instructions:
            text = asking(question, one)
            parts.append(f"{question.name}: {text}" if joint else text)
    if joint:
        parts.append(FORM)
    return facts.prompt("\n\n".join(parts), (), width)


def _request(form: _Form, seed: int, canvas_length: int | None) -> Request:
    asked = tuple(dict.fromkeys(token for one in form.labels for token in one.first))
    params = SamplingParams(
        seed=seed, max_steps=1, logprobs=0, logprob_token_ids=asked, canvas_length=canvas_length
    )
    return Request(token_ids=form.prompt, params=params, canvas=form.control)


def _asked(output: Output, form: _Form, place: int) -> tuple[float, ...]:
    """Log-probabilities of a question's labels at its slot."""
    asked = list(dict.fromkeys(token for one in form.labels for token in one.first))
    values = output.scores[form.slots[place]].asked
    return tuple(values[asked.index(token)] for token in form.labels[place].first)


def _answer(
    question: Question, found: Labels, rows: Sequence[Sequence[float]],
    calibration: Calibration | None,
) -> Answer:  # fmt: skip
    """The answer from each draw's log-probabilities of the labels."""
    kind = kind_of(question)
    temperature = (calibration or Calibration()).temperature(kind)
    draws = [_scaled(row) for row in rows]
    average = [mean(column) for column in zip(*draws, strict=True)]
    probabilities = tempered(average, temperature)
    best = max(range(len(average)), key=lambda n: (probabilities[n], -n))
    weights = [0.0] * len(average)  # of the choices in the one number that the answer states
    if isinstance(question, Predicate):
        weights[0] = 1.0
    elif isinstance(question, Score):
        weights = [float(level) for level in range(1, len(average) + 1)]
    else:
        weights[best] = 1.0
    said = _weighted(weights, probabilities)
    spread = [_weighted(weights, tempered(draw, temperature)) for draw in draws]
    return Answer(
        name=question.name, type=kind, choice=found.values[best], confidence=probabilities[best],
        probabilities=tuple(zip(found.values, probabilities, strict=True)),
        probability=said if isinstance(question, Predicate) else None,
        score=said if isinstance(question, Score) else None,
        stderr=stdev(spread) / math.sqrt(len(spread)) if len(spread) > 1 else None,
        label_mass=mean([sum(map(math.exp, row)) for row in rows]),
    )  # fmt: skip


def _scaled(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities that sum to 1."""
    if max(logprobs) == -math.inf:
        return (1 / len(logprobs),) * len(logprobs)
    return softmax(logprobs)


def _weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True))
