"""Puzzles with few givens: one solution each, never a training grid, never in a training mix."""

from __future__ import annotations

import pytest

from dgemma.errors import InvalidRequest
from dgemma.tasks import EVALUATION_TASKS, TASKS, grade, make_example, tasks_named
from dgemma.tasks.draw import split_of
from dgemma.tasks.hard_sudoku import GIVENS
from dgemma.tasks.sudoku import PROMPT, invariant
from recipes.nano.mix import MIXES
from tests.support.sudoku import digits, solutions

COUNT = {"sudoku-hard": 24, "sudoku-harder": 6}
"""Puzzles whose solutions are counted by plain sets, which takes long with few givens."""


@pytest.mark.parametrize("task", EVALUATION_TASKS)
def test_the_answer_is_the_only_solution(task: str) -> None:
    """Catches a dig that leaves a second solution, which would grade right answers as wrong."""
    for index in range(COUNT[task]):
        example = make_example(task, "heldout", 5, index)
        rows = example.question.removeprefix(PROMPT).split("\n")
        blanks = sum(row.count(".") for row in rows)
        assert [len(row) for row in rows] == [9] * 9 and example.meta["blanks"] == blanks
        assert solutions(rows) == [example.answer.split("\n")]
        assert grade(example, example.answer)["exact"] == 1.0
        assert grade(example, "")["exact"] == 0.0


@pytest.mark.parametrize("task", EVALUATION_TASKS)
def test_givens_and_grids(task: str) -> None:
    """Catches givens beyond the range, one grid under many puzzles, and a grid of training."""
    made = [make_example(task, "heldout", 6, index) for index in range(25)]
    least, most = GIVENS[task]
    assert {81 - int(str(one.meta["blanks"])) for one in made} == set(range(least, most + 1))
    kinds = [invariant(digits(one.answer)) for one in made]
    assert len(set(kinds)) == len(made)
    assert {split_of("sudoku", kind) for kind in kinds} == {"heldout"}
    assert made == [make_example(task, "heldout", 6, index) for index in range(25)]
    assert made[0] != make_example(task, "heldout", 7, 0)


def test_they_are_never_trained_on() -> None:
    """Catches an evaluation that the model has seen the kind of."""
    trained = {task for _, mix in MIXES for task in (*mix.long, *mix.short, *mix.written)}
    assert trained and trained <= set(TASKS) and not set(EVALUATION_TASKS) & set(TASKS)
    for task in EVALUATION_TASKS:
        with pytest.raises(InvalidRequest, match="evaluation alone"):
            make_example(task, "train", 0, 0)


def test_tasks_by_name() -> None:
    """Catches "all" that measures what the README's seven tasks are not, and a lost hint."""
    assert tasks_named("all") == list(TASKS)
    assert tasks_named("sudoku-hard,json") == ["sudoku-hard", "json"]
    for wrong in ("sudoku-hart", "json,sudoku-hart", "json,,chat"):
        with pytest.raises(InvalidRequest, match="unknown task"):
            tasks_named(wrong)
    with pytest.raises(InvalidRequest, match="sudoku-hard'"):
        make_example("sudoku-hart", "heldout", 0, 0)
