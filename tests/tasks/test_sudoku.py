"""Sudoku examples: one solution each, splits that share no grid, grading cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from dgemma.errors import InvalidRequest
from dgemma.tasks import grade, make_example, make_sudoku
from dgemma.tasks.draw import SPLITS, Draw, Split, split_of
from dgemma.tasks.sudoku import MOST_BLANKS, PROMPT, VARIANTS, invariant
from tests.support.sudoku import digits, solutions


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_the_only_solution(split: Split) -> None:
    # A wrong shortcut in the dig would leave puzzles that grade right answers as wrong.
    for index in range(0, 20 * VARIANTS, VARIANTS + 1):
        example = make_example("sudoku", split, 5, index)
        rows = example.question.removeprefix(PROMPT).split("\n")
        assert [len(row) for row in rows] == [9] * 9
        assert sum(row.count(".") for row in rows) == example.meta["blanks"]
        assert solutions(rows) == [example.answer.split("\n")]
        assert len(example.answer) == 89


def test_the_hardest_puzzles_have_one_solution() -> None:
    # 45 blanks use the whole dug mask: fewer blanks would hide a mask that is not unique.
    for index in range(0, 20 * VARIANTS, VARIANTS):
        example = make_sudoku("train", 9, index, blanks=(MOST_BLANKS, MOST_BLANKS))
        rows = example.question.removeprefix(PROMPT).split("\n")
        assert solutions(rows) == [example.answer.split("\n")]


def test_splits_share_no_grid_under_any_symmetry() -> None:
    # The invariant alone decides the split, so disjoint hash classes are a proof, if the
    # invariant is one (the next test) and every example obeys it (this one).
    for split in SPLITS:
        for index in range(400):
            answer = make_example("sudoku", split, 1, index).answer
            assert split_of("sudoku", invariant(digits(answer))) == split


def test_invariant_is_one_and_tells_grids_apart() -> None:
    # All generators of the symmetry group at random; a wrong invariant would leak grids.
    draw = Draw("test")
    answers = [make_example("sudoku", "train", 2, VARIANTS * k).answer for k in range(40)]
    for answer in answers:
        grid = np.array(digits(answer)).reshape(9, 9)
        expected = invariant(grid.ravel().tolist())
        for _ in range(3):
            lines = [3 * b + k for b in draw.shuffled(range(3)) for k in draw.shuffled(range(3))]
            grid = grid[lines].T
            grid = np.array([0, *draw.shuffled(range(1, 10))])[grid]
            assert invariant(grid.ravel().tolist()) == expected
    assert len({invariant(digits(answer)) for answer in answers}) == len(answers)


def test_variants_of_a_grid_differ() -> None:
    # Equal variants would be the same example many times over.
    block = [make_example("sudoku", "train", 3, index) for index in range(4 * VARIANTS)]
    assert len({example.answer for example in block}) == len(block)


def test_blanks_follow_the_range_and_wrong_ranges_are_refused() -> None:
    # The trainer's curriculum relies on the range; uniform: all 11 counts within 300 draws
    # (chance that one is absent < 11 * (10/11)**300 < 1e-11, and the draws are fixed anyway).
    seen = {make_example("sudoku", "train", 4, index).meta["blanks"] for index in range(300)}
    assert seen == set(range(35, 46))
    easy = {make_sudoku("train", 4, k, blanks=(5, 8)).meta["blanks"] for k in range(60)}
    assert easy == {5, 6, 7, 8}
    for bad in ((-1, 4), (7, 3), (40, 46)):
        with pytest.raises(InvalidRequest, match="blanks"):
            make_sudoku("train", 0, 0, blanks=bad)


def test_grading_counts_cells() -> None:
    example = make_example("sudoku", "heldout", 0, 0)
    assert grade(example, example.answer + "\n") == {"exact": 1.0, "cells": 1.0, "blanks": 1.0}
    assert grade(example, "") == {"exact": 0.0, "cells": 0.0, "blanks": 0.0}
    puzzle = example.question.removeprefix(PROMPT)
    copied = grade(example, puzzle)
    assert copied["exact"] == 0.0 and copied["blanks"] == 0.0 and copied["cells"] > 0.4
    wrong = ("2" if example.answer[0] == "1" else "1") + example.answer[1:]
    assert grade(example, wrong)["cells"] == pytest.approx(80 / 81)
    assert grade(example, wrong)["exact"] == 0.0
