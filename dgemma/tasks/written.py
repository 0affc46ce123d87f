"""Texts to be written whole, without a question: what filling in on the canvas needs.

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
        raise InvalidRequest(f"{example.task} is no text to be written; those are {WRITTEN}")
    return replace(example, messages=asked(WRITE), answer=text)
