"""The worth of pinning, filling, schemas and decisions, on held-out examples, paired.

Every line sets two ways of getting the same answers beside each other. Knows tasks and the calls
of `LLM`. Knows nothing about how a canvas is controlled.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dgemma.compose.calibration import (
    Calibration,
    expected_calibration_error,
    fit_temperature,
    tempered,
)
from dgemma.compose.fill import Hole
from dgemma.compose.questions import Choice
from dgemma.evaluate.paired import difference
from dgemma.evaluate.run import HELD_OUT_SEED
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.tasks import Example, grade, make_example
from dgemma.tasks.example import asked
from dgemma.text.prompts import WRITE
from dgemma.types import CanvasControl, Request

T = TypeVar("T")

TOGETHER = 32
"""ToolUse that run at a time; they share the model's passes."""

GARBLED = 0.15
"""Share of letters that are replaced to make a text hard to read."""


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: shares of right answers of both ways, and the interval of the difference."""

    what: str
    one: str
    other: str
    count: int
    right: tuple[float, float]
    margin: float
    note: str = ""


def _together(call: Callable[[int], T], count: int) -> list[T]:
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(call, range(count)))


def _line(
    what: str, names: tuple[str, str], one: Sequence[float], other: Sequence[float], note: str = ""
) -> Line:
    right = statistics.fmean(one), statistics.fmean(other)
    return Line(what, *names, len(one), right, difference(other, one)[1], note)


def sudoku(llm: LLM, n: int) -> Line:
    """Puzzles from the prompt, and as holes in a grid whose givens are pinned."""
    examples = [make_example("sudoku", "heldout", HELD_OUT_SEED, i) for i in range(n)]
    tokenizer = llm.frontend.tokenizer
    digits = tuple(tokenizer.encode(d)[-1] for d in "123456789")
    hole = Hole(max_tokens=1, allowed_token_ids=digits)

    def asked(i: int) -> float:
        output = llm.chat(examples[i].messages, SamplingParams(seed=HELD_OUT_SEED + i))
        return grade(examples[i], output.text)["exact"]

    def pinned(i: int) -> float:
        grid = examples[i].question.partition("\n")[2]
        parts: list[str | Hole] = []
        for number, piece in enumerate(grid.split(".")):
            parts += [hole, piece] if number else [piece]
        filled = llm.fill(parts, SamplingParams(seed=HELD_OUT_SEED + i), search=False)
        return grade(examples[i], filled.text)["exact"]

    return _line("Sudoku", ("givens in the prompt", "givens pinned, no prompt"),
                 _together(asked, n), _together(pinned, n))  # fmt: skip


def _parts(example: Example) -> tuple[str, str, str]:
    """The text before a gap, the gap, the text after it."""
    prefix, gap, suffix = (str(example.meta[part]) for part in ("prefix", "gap", "suffix"))
    return prefix, gap, suffix


def _continued(llm: LLM, prefix: str, seed: int) -> str:
    """The text that a model writes that sees the text before the gap alone."""
    ids = tuple(llm.frontend.tokenizer.encode(prefix.rstrip(" ")))
    control = CanvasControl(ids=ids, pinned=tuple(range(len(ids))))
    prompt = tuple(llm.chat_ids([{"role": "user", "content": WRITE}], None, False))
    request = Request(token_ids=prompt, params=SamplingParams(seed=seed), canvas=control)
    text = llm.run([request])[0].text
    return text[len(prefix) :] if text.startswith(prefix) else ""


def gaps(llm: LLM, n: int) -> list[Line]:
    """Gaps that the text after them decides."""
    examples = [make_example("gaps", "heldout", HELD_OUT_SEED, i) for i in range(n)]
    encode = llm.frontend.tokenizer.encode

    def blind(i: int) -> float:
        prefix, gap, _ = _parts(examples[i])
        rest = _continued(llm, prefix, HELD_OUT_SEED + i)
        return float(rest.startswith(gap) and not rest[len(gap) : len(gap) + 1].isalnum())

    def filled(i: int, max_hole: int, search: bool) -> float:
        prefix, gap, suffix = _parts(examples[i])
        params = SamplingParams(seed=HELD_OUT_SEED + i)
        done = llm.infill(prefix, suffix, params, max_hole=max_hole, search=search)
        return float(done.holes[0].text == gap)

    def known(i: int) -> float:
        prefix, gap, _ = _parts(examples[i])
        size = len(encode(prefix + gap)) - len(encode(prefix.rstrip(" ")))
        return filled(i, max(1, size - 1), False)

    one = _together(blind, n)
    two, three = _together(lambda i: filled(i, 12, True), n), _together(known, n)
    name = "text before the gap alone"
    return [
        _line("Gaps", (name, "both sides, length found"), one, two),
        _line("Gaps", (name, "both sides, length given"), one, three),
    ]


def schema_of(value: Any) -> dict[str, Any]:
    """A JSON schema that values like this one satisfy."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, str):
        return {"type": "string"}
    if isinstance(value, (int, float)):
        return {"type": "integer" if isinstance(value, int) else "number"}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0])} if value else {"type": "array"}
    assert isinstance(value, dict)
    return {
        "type": "object", "properties": {key: schema_of(v) for key, v in value.items()},
        "required": list(value), "additionalProperties": False,
    }  # fmt: skip


def structured(llm: LLM, n: int) -> Line:
    """JSON with and without its schema; the note has the ratio of times, one call at a time."""
    examples = [make_example("json", "heldout", HELD_OUT_SEED, i) for i in range(n)]
    schemas = [schema_of(json.loads(example.answer)) for example in examples]

    def answer(i: int, schema: dict[str, Any] | None) -> float:
        params = SamplingParams(seed=HELD_OUT_SEED + i, json_schema=schema)
        return grade(examples[i], llm.chat(examples[i].messages, params).text)["exact"]

    free = _together(lambda i: answer(i, None), n)
    kept = _together(lambda i: answer(i, schemas[i]), n)
    ratios = []
    for i in range(min(n, 100)):
        began = time.perf_counter()
        answer(i, None)
        middle = time.perf_counter()
        answer(i, schemas[i])
        ratios.append((time.perf_counter() - middle) / (middle - began))
    note = f"time {statistics.median(ratios):.2f} x"
    return _line("JSON", ("no schema", "under its schema"), free, kept, note)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Decisions of one kind on `count` examples that the fit has not seen."""

    kind: str
    count: int
    right: float
    before: float
    after: float
    temperature: float


def _garbled(text: str, seed: int) -> str:
    """A text with some of its letters replaced at random, after the task's own word."""
    draw, head = random.Random(seed), text.index(" ")
    letters = "abcdefghijklmnopqrstuvwxyz"
    return text[:head] + "".join(
        draw.choice(letters) if letter.isalpha() and draw.random() < GARBLED else letter
        for letter in text[head:]
    )


def _questions(n: int) -> list[tuple[str, Example, list[str], str]]:
    """(kind, example, choices, the right one): labels, plain and hard to read; a Sudoku's cell."""
    out: list[tuple[str, Example, list[str], str]] = []
    for index in range(3 * n):
        example = make_example("labels", "heldout", HELD_OUT_SEED, index)
        choices = example.meta["choices"]
        assert isinstance(choices, list)
        kind = str(example.meta["kind"])
        out.append((kind, example, choices, example.answer))
        hard = replace(example, messages=asked(_garbled(example.question, index)))
        out.append((f"{kind}, garbled", hard, choices, example.answer))
    for index in range(3 * n):
        example = make_example("sudoku", "heldout", HELD_OUT_SEED, index)
        if example.question.partition("\n")[2].startswith("."):
            out.append(("first cell of a Sudoku", example, list("123456789"), example.answer[0]))
    return out


def decisions(llm: LLM, n: int) -> list[Calibrated]:
    """About n decisions of each kind by one reading; half of the examples fit the temperature."""
    found: dict[str, list[tuple[tuple[float, ...], int]]] = {}
    questions = _questions(n)

    def read(i: int) -> tuple[str, tuple[float, ...], int]:
        kind, example, choices, answer = questions[i]
        question, plain = Choice("label", "", choices), Calibration()
        decision = llm.decide(example.messages, [question], seed=i, calibration=plain)
        shares = tuple(p for _, p in decision.answers[0].probabilities)
        return kind, shares, choices.index(answer)

    for kind, shares, right in _together(read, len(questions)):
        found.setdefault(kind, []).append((shares, right))
    out = []
    for kind, rows in sorted(found.items()):
        fit, test = rows[::2], rows[1::2]
        temperature = fit_temperature([p for p, _ in fit], [r for _, r in fit])
        scaled = [tempered(p, temperature) for p, _ in test]
        good = [p.index(max(p)) == r for p, r in test]
        before = expected_calibration_error([max(p) for p, _ in test], good)
        after = expected_calibration_error([max(p) for p in scaled], good)
        right_share = statistics.fmean(good)
        out.append(Calibrated(kind, len(test), right_share, before, after, temperature))
    return out


def as_markdown(lines: Sequence[Line], calibrated: Sequence[Calibrated]) -> str:
    """Both tables."""
    out = [
        "| task | one way | another | n | right | gain (95 %) | |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        one, other = line.right
        out.append(
            f"| {line.what} | {line.one} | {line.other} | {line.count} | {one:.1%}, {other:.1%} | "
            f"{100 * (other - one):+.1f} +- {100 * line.margin:.1f} | {line.note} |"
        )
    out += ["", "| decision | n | right | calibration error before, after the fit | temperature |",
            "|---|---|---|---|---|"]  # fmt: skip
    for c in calibrated:
        out.append(
            f"| {c.kind} | {c.count} | {c.right:.1%} | {c.before:.3f}, {c.after:.3f} | "
            f"{c.temperature:.2f} |"
        )
    return "\n".join(out)


def evaluate_canvas(llm: LLM, n: int, report: Callable[[str], None]) -> str:
    """Both tables over n examples of each task."""
    lines: list[Line] = []
    for call in (gaps, sudoku, structured):
        made = call(llm, n)
        lines += made if isinstance(made, list) else [made]
        report(f"{lines[-1].what}: {lines[-1].right[0]:.3f} and {lines[-1].right[1]:.3f}")
    return as_markdown(lines, decisions(llm, n))
