"""Makers of small examples with their graders; every word of them is written by us.

An example is a pure function of (task, split, seed, index), so a run can stop and go on exactly
where it was, in any order. Knows nothing about tensors (no torch), tokenizers or models.
"""

from dgemma.tasks.example import Example
from dgemma.tasks.mix import EVALUATION_TASKS, TASKS, grade, make_example, tasks_named
from dgemma.tasks.sudoku import make_sudoku

__all__ = [
    "EVALUATION_TASKS",
    "TASKS",
    "Example",
    "grade",
    "make_example",
    "make_sudoku",
    "tasks_named",
]
