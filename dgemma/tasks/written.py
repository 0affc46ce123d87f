"""Texts to be written whole, without a question, for filling holes on the canvas.

A model that has learnt such texts, at every share of noise, fills the gap between pinned parts.
Knows the tasks whose answers make such texts. Knows nothing about canvases.
"""

from __future__ import annotations

from dataclasses import replace

from dgemma.errors import InvalidRequest
from dgemma.tasks.example import Example, asked
from dgemma.text.prompts import WRITE

WRITTEN = ("gaps", "sudoku")
"""Tasks that can be turned into a text to be written."""


def as_text(example: Example) -> Example:
    """The same example as a text: the sentence with its gap filled, or the solved grid.

    Raises:
        InvalidRequest: the task has no such text.
    """
    if example.task == "gaps":
        text = "".join(str(example.meta[part]) for part in ("prefix", "gap", "suffix"))
    elif example.task == "sudoku":
        text = example.answer
    else:
        raise InvalidRequest(f"{example.task} is not a text to be written; those are {WRITTEN}")
    return replace(example, messages=asked(WRITE), answer=text)


def holes(example: Example) -> list[tuple[int, int]]:
    """Where the text of `as_text` had its gap or its blanks: (start, end) in characters.

    A blank in front of a gap belongs to it, since tokens begin with their blank.

    Raises:
        InvalidRequest: the task has no such text.
    """
    if example.task == "gaps":
        prefix, gap = str(example.meta["prefix"]), str(example.meta["gap"])
        return [(len(prefix.rstrip(" ")), len(prefix) + len(gap))]
    if example.task == "sudoku":
        grid = example.question.partition("\n")[2]
        return [(at, at + 1) for at, cell in enumerate(grid) if cell == "."]
    raise InvalidRequest(f"{example.task} has no holes; those are {WRITTEN}")
