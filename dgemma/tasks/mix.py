"""One door to all tasks: make an example by name, and grade an answer to it.

Knows which maker and which grader belongs to a task's name; knows nothing about how they work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dgemma.errors import InvalidRequest, nearest
from dgemma.tasks.chat import make_chat
from dgemma.tasks.draw import SPLITS, Split
from dgemma.tasks.example import Example
from dgemma.tasks.gaps import make_gaps
from dgemma.tasks.hard_sudoku import GIVENS, make_hard_sudoku
from dgemma.tasks.json_facts import grade_json, make_json
from dgemma.tasks.labels import make_labels
from dgemma.tasks.sudoku import grade_sudoku, make_sudoku
from dgemma.tasks.thought import grade_thought, make_thought
from dgemma.tasks.tool_calls import grade_tools, make_tools

_MAKERS: Mapping[str, Callable[[Split, int, int], Example]] = {
    "sudoku": make_sudoku,
    "json": make_json,
    "tools": make_tools,
    "thought": make_thought,
    "gaps": make_gaps,
    "labels": make_labels,
    "chat": make_chat,
}
TASKS: tuple[str, ...] = tuple(_MAKERS)
"""Names of the tasks that nano was trained on."""
EVALUATION_TASKS: tuple[str, ...] = tuple(GIVENS)
"""Names of tasks that are never trained on: they have no split but the held-out one."""


def tasks_named(text: str) -> list[str]:
    """Tasks from their names with commas between them; "all": those of `TASKS`.

    Raises:
        InvalidRequest: an unknown name.
    """
    names = list(TASKS) if text == "all" else text.split(",")
    for name in names:
        _check_name(name)
    return names


def _check_name(task: str) -> None:
    if task not in _MAKERS and task not in GIVENS:
        raise InvalidRequest(f"unknown task {task!r}{nearest(task, TASKS + EVALUATION_TASKS)}")


def make_example(task: str, split: Split, seed: int, index: int) -> Example:
    """Example number `index` of a task: a pure function of its four arguments.

    Raises:
        InvalidRequest: an unknown task or split, an index below 0, or the training split of one of
            `EVALUATION_TASKS`.
    """
    _check_name(task)
    if split not in SPLITS:
        raise InvalidRequest(f"unknown split {split!r}{nearest(split, SPLITS)}")
    if index < 0:
        raise InvalidRequest(f"index must be at least 0, got {index}")
    if task in _MAKERS:
        return _MAKERS[task](split, seed, index)
    if split != "heldout":
        raise InvalidRequest(f"{task} is for evaluation alone; its split is 'heldout'")
    return make_hard_sudoku(task, seed, index)


def grade(
    example: Example,
    text: str,
    thinking: str | None = None,
    tool_calls: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Scores of an answer, each in 0..1; `exact` is always among them.

    Args:
        text: the answer, without its thought and its tool calls.
        thinking: the thought, if there was one.
        tool_calls: plain {"name": ..., "arguments": {...}} mappings.
    """
    if example.task == "sudoku" or example.task in GIVENS:
        return grade_sudoku(example, text)
    if example.task == "json":
        return grade_json(example, text)
    if example.task == "thought":
        return grade_thought(example, text, thinking)
    if example.task == "tools":
        return grade_tools(example, text, tool_calls)
    return {"exact": float(text.strip() == example.answer)}
