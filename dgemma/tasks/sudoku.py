"""Sudoku puzzles with one solution, four from each solved grid.

A solved grid is drawn and dug down to 36 givens that still have one solution; each of its four
variants is that puzzle under a random symmetry, with some of the dug cells given back. The
splits are separated by a number that no symmetry changes, so a held-out grid is never a turned,
relabelled or shuffled training grid. Knows nothing about chat templates or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dgemma.errors import InvalidRequest
from dgemma.tasks.draw import Draw, Split, split_of
from dgemma.tasks.example import Example, asked

VARIANTS = 4
"""Examples made of one solved grid: index // 4 names the grid, index % 4 the variant."""
MOST_BLANKS = 45
BLANKS = (35, MOST_BLANKS)
PROMPT = "Sudoku:\n"

_FULL = 0b111111111
_ROW = tuple(cell // 9 for cell in range(81))
_COL = tuple(cell % 9 for cell in range(81))
_BOX = tuple(cell // 27 * 3 + cell % 9 // 3 for cell in range(81))
_COUNT = tuple(mask.bit_count() for mask in range(512))
_BITS = tuple(tuple(1 << d for d in range(9) if mask >> d & 1) for mask in range(512))


class Board:
    """A partly filled grid as bit masks; bit d of a unit's mask means digit d + 1 is taken."""

    __slots__ = ("boxes", "cells", "cols", "open", "rows")

    def __init__(self) -> None:
        self.cells = [0] * 81  # the digit's bit, 0 for an open cell
        self.rows, self.cols, self.boxes = [0] * 9, [0] * 9, [0] * 9
        self.open: list[int] = []  # cells that `fill` shall fill

    def toggle(self, cell: int, bit: int) -> None:
        """Puts a digit's bit into an empty cell, or takes it out of its cell."""
        self.cells[cell] ^= bit
        self.rows[_ROW[cell]] ^= bit
        self.cols[_COL[cell]] ^= bit
        self.boxes[_BOX[cell]] ^= bit

    def free(self, cell: int) -> int:
        """Mask of the digits that row, column and box leave to this cell."""
        return ~(self.rows[_ROW[cell]] | self.cols[_COL[cell]] | self.boxes[_BOX[cell]]) & _FULL

    def fill(self, draw: Draw | None = None) -> bool:
        """Fills the open cells, the one with the fewest digits left first.

        Returns whether it could; if not, the board is as it was (but for the order of `open`).
        """
        if not self.open:
            return True
        rows, cols, boxes = self.rows, self.cols, self.boxes
        at, best, fewest = 0, 0, 10
        for k, cell in enumerate(self.open):
            free = ~(rows[_ROW[cell]] | cols[_COL[cell]] | boxes[_BOX[cell]]) & _FULL
            count = _COUNT[free]
            if count < fewest:
                at, best, fewest = k, free, count
                if count <= 1:
                    break
        if not best:
            return False
        cell = self.open[at]
        self.open[at] = self.open[-1]
        self.open.pop()
        bits: Sequence[int] = _BITS[best]
        if draw is not None and fewest > 1:
            bits = draw.shuffled(bits)
        for bit in bits:
            self.toggle(cell, bit)
            if self.fill(draw):
                return True
            self.toggle(cell, bit)
        self.open.append(cell)
        return False


def _solved(draw: Draw) -> Board:
    """A random solved board: the boxes on the diagonal are free, the rest follows by search."""
    board = Board()
    for box in (0, 4, 8):
        cells = [cell for cell in range(81) if _BOX[cell] == box]
        for cell, bit in zip(cells, draw.shuffled(_BITS[_FULL]), strict=True):
            board.toggle(cell, bit)
    board.open = [cell for cell in range(81) if not board.cells[cell]]
    found = board.fill(draw)
    assert found, "three diagonal boxes can always be completed"
    return board


def other_solution(board: Board, cell: int, bits: int, dug: list[int]) -> bool:
    """Whether the board, `dug` cells empty, has a solution with one of `bits` in `cell`."""
    for bit in _BITS[bits]:
        board.toggle(cell, bit)
        board.open = dug.copy()
        found = board.fill()
        for filled in dug if found else ():
            board.toggle(filled, board.cells[filled])
        board.toggle(cell, bit)
        if found:
            return True
    return False


def _dig(board: Board, draw: Draw) -> list[int] | None:
    """Empties 45 cells so that one solution is left; None in the rare case that it cannot.

    While the solution is unique, emptying a cell makes a second one only with another digit in
    that very cell, so those digits alone are tried.
    """
    dug: list[int] = []
    for cell in draw.shuffled(range(81)):
        bit = board.cells[cell]
        board.toggle(cell, bit)
        others = board.free(cell) & ~bit
        if others and other_solution(board, cell, others, dug):
            board.toggle(cell, bit)
            continue
        dug.append(cell)
        if len(dug) == MOST_BLANKS:
            return dug
    return None


def _cycles(one: Sequence[int], other: Sequence[int]) -> str:
    """Cycle lengths of the permutation of digits that takes one line to the other."""
    step = dict(zip(one, other, strict=True))
    lengths = []
    while step:
        start, digit = step.popitem()
        length = 1
        while digit != start:
            digit = step.pop(digit)
            length += 1
        lengths.append(length)
    return "".join(map(str, sorted(lengths)))


def invariant(grid: Sequence[int]) -> str:
    """A text that is the same for all grids (81 digits, row by row) that are symmetric to this one.

    Each pair of rows of a band is a permutation of the digits. Relabelling the digits conjugates
    it, shuffling columns leaves it alone, swapping the two rows inverts it: its cycle lengths
    stay. The bands' (and stacks') sorted triples are sorted, and so are the halves for rows and
    for columns, which transposing swaps.
    """
    halves = []
    for lines in ([grid[9 * r : 9 * r + 9] for r in range(9)], [grid[c::9] for c in range(9)]):
        bands = []
        for at in (0, 3, 6):
            one, two, three = lines[at : at + 3]
            pairs = (_cycles(one, two), _cycles(one, three), _cycles(two, three))
            bands.append(",".join(sorted(pairs)))
        halves.append(";".join(sorted(bands)))
    return "|".join(sorted(halves))


@lru_cache(maxsize=256)
def _base(split: Split, seed: int, number: int) -> tuple[NDArray[np.uint8], list[int]]:
    """A solved grid of this split as [9, 9] digits 0..8, and the 45 cells it can do without."""
    draw = Draw("sudoku base", split, seed, number)
    while True:
        board = _solved(draw)
        grid = [bit.bit_length() for bit in board.cells]
        if split_of("sudoku", invariant(grid)) != split:
            continue
        dug = _dig(board, draw)
        if dug is not None:
            return np.array(grid, dtype=np.uint8).reshape(9, 9) - 1, dug


def _lines(draw: Draw) -> list[int]:
    """A random order of nine lines that keeps the bands together."""
    return [3 * band + line for band in draw.shuffled(range(3)) for line in draw.shuffled(range(3))]


def _text(grid: NDArray[np.uint8]) -> str:
    """Nine rows of nine characters of a [9, 9] grid of character codes."""
    rows = np.full((9, 10), ord("\n"), dtype=np.uint8)
    rows[:, :9] = grid
    return rows.tobytes()[:-1].decode("ascii")


def make_sudoku(
    split: Split, seed: int, index: int, *, blanks: tuple[int, int] = BLANKS
) -> Example:
    """Puzzle number `index`: nine rows with '.' for a blank; the answer is the nine solved rows.

    Args:
        split, seed, index: they determine the puzzle, with `blanks`.
        blanks: fewest and most blanks, drawn uniformly; at most 45, so that the solution is unique.

    Raises:
        InvalidRequest: `blanks` is not a range within 0..45.
    """
    if not 0 <= blanks[0] <= blanks[1] <= MOST_BLANKS:
        raise InvalidRequest(f"blanks must be a range within 0..{MOST_BLANKS}, got {blanks}")
    base, dug = _base(split, seed, index // VARIANTS)
    draw = Draw("sudoku variant", split, seed, index)
    count = draw.between(*blanks)
    digits = np.array(draw.shuffled(b"123456789"), dtype=np.uint8)
    solved = digits[base]
    puzzle = solved.copy()
    puzzle.reshape(81)[draw.sample(dug, count)] = ord(".")
    order = np.ix_(_lines(draw), _lines(draw))
    puzzle, solved = puzzle[order], solved[order]
    if draw.below(2):
        puzzle, solved = puzzle.T, solved.T
    return Example(
        task="sudoku",
        messages=asked(PROMPT + _text(puzzle)),
        answer=_text(solved),
        meta={"blanks": count},
    )


def grade_sudoku(example: Example, text: str) -> dict[str, float]:
    """`exact`; `cells` right of all 81; `blanks` right of those that were not given."""
    given = "".join(example.question.removeprefix(PROMPT).split())
    right = "".join(example.answer.split())
    said = "".join(text.split()).ljust(81)
    hits = [a == b for a, b in zip(said, right, strict=False)]
    asked_for = [hit for hit, digit in zip(hits, given, strict=True) if digit == "."]
    return {
        "exact": float(text.strip() == example.answer),
        "cells": sum(hits) / 81,
        "blanks": sum(asked_for) / len(asked_for) if asked_for else 1.0,
    }
