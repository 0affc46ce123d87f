"""Small questions whose answer is worked out in a short written thought first.

Knows the questions, how each is worked out, and the grade; knows nothing about thought channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dgemma.tasks import slots
from dgemma.tasks.draw import Draw, Split
from dgemma.tasks.example import Example, asked
from dgemma.tasks.slots import TaskSlot

Worked = tuple[str, str, str, tuple[TaskSlot, ...]]
"""Question, thought, answer, slots."""


def _add(draw: Draw, split: Split) -> Worked:
    """Two 2-digit numbers, ones first, then tens with the carry."""
    a, b = slots.pair(draw, split, 10, 99)
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    steps = f"{a % 10}+{b % 10}={ones}. {a // 10}+{b // 10}+{carry}={tens + carry}."
    question = draw.pick(("{a}+{b}", "Add {a} and {b}.", "How much is {a} plus {b}?"))
    return question.format(a=a, b=b), steps, str(a + b), (slots.pair_slot(a, b),)


def _last_letters(draw: Draw, split: Split) -> Worked:
    """The last letters of two or three made-up words, put together."""
    words = [slots.word(draw, split, draw.between(1, 2)) for _ in range(draw.between(2, 3))]
    steps = " ".join(f"{word}: {word[-1]}." for word in words)
    question = draw.pick(("Last letters: {}", "Join the last letters of: {}"))
    found = tuple(TaskSlot("name", word.capitalize(), f'"{word}"') for word in words)
    return question.format(" ".join(words)), steps, "".join(word[-1] for word in words), found


def _larger(draw: Draw, split: Split) -> Worked:
    """The larger of two 3-digit numbers, digit by digit until they differ."""
    while True:
        a, b = slots.pair(draw, split, 100, 999)
        if draw.below(2):  # half of the pairs share their first digit, so that it does not decide
            b = a // 100 * 100 + b % 100
        if a != b and slots.in_split(slots.pair_slot(a, b), split):
            break
    steps = []
    for one, other in zip(str(a), str(b), strict=True):
        sign = "=" if one == other else "<" if one < other else ">"
        steps.append(f"{one}{sign}{other}")
        if sign != "=":
            break
    question = draw.pick(("Which is larger, {a} or {b}?", "Larger of {a} and {b}?"))
    answer = str(max(a, b))
    return question.format(a=a, b=b), " ".join(steps) + ".", answer, (slots.pair_slot(a, b),)


_KINDS: Mapping[str, Callable[[Draw, Split], Worked]] = {
    "add": _add,
    "last letters": _last_letters,
    "larger": _larger,
}
KINDS = tuple(_KINDS)


def make_thought(split: Split, seed: int, index: int) -> Example:
    """A question of a random kind with its thought; `meta` holds "kind" and the slots."""
    draw = Draw("thought", split, seed, index)
    kind = draw.pick(KINDS)
    question, thinking, answer, found = _KINDS[kind](draw, split)
    return Example(
        task="thought",
        messages=asked(question),
        answer=answer,
        thinking=thinking,
        meta={"kind": kind, "slots": found},
    )


def grade_thought(example: Example, text: str, thinking: str | None) -> dict[str, float]:
    """`exact`: the answer is right, however found; `thought`: so is each step of the thought."""
    said = (thinking or "").strip()
    return {
        "exact": float(text.strip() == example.answer),
        "thought": float(said == example.thinking),
    }
