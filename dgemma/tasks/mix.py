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
"""Names of all tasks."""


def make_example(task: str, split: Split, seed: int, index: int) -> Example:
    """Example number `index` of a task: a pure function of its four arguments.

    Raises:
        InvalidRequest: an unknown task or split, or an index below 0.
    """
    if task not in _MAKERS:
        raise InvalidRequest(f"unknown task {task!r}{nearest(task, TASKS)}")
    if split not in SPLITS:
        raise InvalidRequest(f"unknown split {split!r}{nearest(split, SPLITS)}")
    if index < 0:
        raise InvalidRequest(f"index must be at least 0, got {index}")
    return _MAKERS[task](split, seed, index)


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
    if example.task == "sudoku":
        return grade_sudoku(example, text)
    if example.task == "json":
        return grade_json(example, text)
    if example.task == "thought":
        return grade_thought(example, text, thinking)
    if example.task == "tools":
        return grade_tools(example, text, tool_calls)
    return {"exact": float(text.strip() == example.answer)}
