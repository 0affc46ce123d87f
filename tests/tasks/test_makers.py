"""What holds for every task: determinism, splits that share no value, honest doors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from dgemma.errors import InvalidRequest
from dgemma.tasks import TASKS, Example, grade, make_example
from dgemma.tasks.chat import _INTENTS, phrases
from dgemma.tasks.draw import SPLITS, Split
from dgemma.tasks.slots import TaskSlot, in_split

WORDED = tuple(task for task in TASKS if task != "sudoku")


def slots_of(example: Example) -> tuple[TaskSlot, ...]:
    return cast(tuple[TaskSlot, ...], example.meta["slots"])


def perfect(example: Example) -> dict[str, float]:
    calls = () if example.tool_call is None else (example.tool_call,)
    return grade(example, example.answer, example.thinking, calls)


@pytest.mark.parametrize("task", TASKS)
def test_examples_do_not_depend_on_order(task: str) -> None:
    # Resuming a run in the middle must see what the unbroken run would have seen.
    forward = [make_example(task, "train", 3, index) for index in range(30)]
    backward = [make_example(task, "train", 3, index) for index in reversed(range(30))]
    assert forward == backward[::-1]
    assert forward != [make_example(task, "train", 4, index) for index in range(30)]
    assert forward != [make_example(task, "heldout", 3, index) for index in range(30)]


@pytest.mark.process
def test_examples_do_not_depend_on_the_process() -> None:
    # Python salts hash() of strings per process; a maker that used it, or a set's order, would
    # give other examples after a restart.
    code = (
        "from dgemma.tasks import TASKS, make_example\n"
        "print([make_example(t, 'heldout', 1, k) for t in TASKS for k in range(8)])"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": str(root), "PYTHONUTF8": "1"},
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_gets_full_marks_and_another_does_not(task: str, split: Split) -> None:
    # A grader that refuses the maker's own answer, or takes any, measures nothing.
    for index in range(60):
        example = make_example(task, split, 2, index)
        assert example.task == task
        assert example.messages[-1]["role"] == "user" and example.question
        assert set(perfect(example).values()) == {1.0}
        assert grade(example, example.answer + " or so")["exact"] == 0.0
        assert grade(example, "")["exact"] == 0.0


@pytest.mark.parametrize("task", WORDED)
def test_splits_share_no_slot_value(task: str) -> None:
    # By construction: each value obeys the hash class of its split, and classes are disjoint.
    seen: dict[Split, set[tuple[str, str]]] = {"train": set(), "heldout": set()}
    for split in SPLITS:
        for index in range(600):
            for slot in slots_of(make_example(task, split, 6, index)):
                assert in_split(slot, split), slot
                seen[split].add((slot.kind, slot.bare))
    assert seen["train"] and seen["heldout"]
    assert not seen["train"] & seen["heldout"]


@pytest.mark.parametrize("task", WORDED)
def test_slots_are_what_the_text_says(task: str) -> None:
    # The proof above is about `meta`; it holds for the text only if the slots are its values.
    for index in range(200):
        example = make_example(task, "heldout", 8, index)
        text = "\n".join(message["content"] for message in example.messages).lower()
        for slot in slots_of(example):
            parts = slot.said.split(" ") if slot.kind == "pair" else [slot.said]
            hidden = task == "labels" and example.meta["kind"] == "topic"  # a form without city
            assert hidden or all(part.lower() in text for part in parts), (text, slot)


def test_chat_phrases_are_parted_however_they_are_typed() -> None:
    # "Bye!" in one split and "bye" in the other would be the same question twice.
    def plain(phrase: str) -> str:
        return re.sub(r"\W", "", phrase.casefold())

    everything: dict[Split, set[str]] = {"train": set(), "heldout": set()}
    for split in SPLITS:
        for kind in _INTENTS:
            mine = phrases(kind, split)
            assert mine, (kind, split)
            everything[split] |= {plain(phrase) for phrase in mine}
    shared = everything["train"] & everything["heldout"]
    assert not shared, shared
    for split in SPLITS:
        for index in range(300):
            example = make_example("chat", split, 5, index)
            if example.meta["kind"] in _INTENTS:
                assert plain(example.question) in everything[split]


def test_wrong_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'sudoku'"):
        make_example("soduku", "train", 0, 0)
    with pytest.raises(InvalidRequest, match="did you mean 'heldout'"):
        make_example("json", cast(Split, "held_out"), 0, 0)
    with pytest.raises(InvalidRequest, match="index"):
        make_example("json", "train", 0, -1)
