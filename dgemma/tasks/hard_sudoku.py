"""Sudoku puzzles with fewer givens than training had, for evaluation alone.

Another generator than that of `dgemma.tasks.sudoku`: a grid grows from its first row, and cells are
dug in pairs that lie opposite each other, as in printed puzzles, before single ones. Each puzzle
has a grid of its own and one solution. Knows nothing about chat templates or training.
"""

from __future__ import annotations

from dgemma.tasks.draw import Draw, split_of
from dgemma.tasks.example import Example, asked
from dgemma.tasks.sudoku import PROMPT, Board, invariant, other_solution

GIVENS = {"sudoku-hard": (30, 35), "sudoku-harder": (24, 28)}
"""Task -> fewest and most givens; training had 36 and more."""


def _solved(draw: Draw) -> Board:
    """A random solved board, grown from a random first row."""
    board = Board()
    for cell, digit in enumerate(draw.shuffled(range(9))):
        board.toggle(cell, 1 << digit)
    board.open = list(range(9, 81))
    found = board.fill(draw)
    assert found, "a first row can always be completed"
    return board


def _dig(board: Board, draw: Draw, givens: int) -> bool:
    """Empties cells until so many givens are left; False if one solution needs more of them."""
    dug: list[int] = []

    def without(cell: int) -> bool:
        bit = board.cells[cell]
        board.toggle(cell, bit)
        others = board.free(cell) & ~bit
        if others and other_solution(board, cell, others, dug):
            board.toggle(cell, bit)
            return False
        dug.append(cell)
        return True

    pairs = [(cell, 80 - cell) for cell in draw.shuffled(range(40))]
    for one, other in pairs:
        if 81 - len(dug) < givens + 2:
            break
        bit = board.cells[one]
        if without(one) and not without(other):
            dug.remove(one)
            board.toggle(one, bit)
    for cell in draw.shuffled(range(81)):
        if 81 - len(dug) == givens:
            return True
        if board.cells[cell]:
            without(cell)
    return 81 - len(dug) == givens


def _text(cells: list[int]) -> str:
    """Nine rows of nine characters; '.' for an open cell."""
    signs = [str(bit.bit_length()) if bit else "." for bit in cells]
    return "\n".join("".join(signs[row : row + 9]) for row in range(0, 81, 9))


def make_hard_sudoku(task: str, seed: int, index: int) -> Example:
    """Puzzle number `index` of a task of `GIVENS`, in the form of `make_sudoku`'s examples.

    Its grid belongs to the held-out split, so it is no turned or relabelled training grid.
    """
    draw = Draw(task, seed, index)
    givens = draw.between(*GIVENS[task])
    while True:
        board = _solved(draw)
        if split_of("sudoku", invariant([bit.bit_length() for bit in board.cells])) != "heldout":
            continue
        answer = _text(board.cells)
        if _dig(board, draw, givens):
            return Example(
                task=task, messages=asked(PROMPT + _text(board.cells)), answer=answer,
                meta={"blanks": 81 - givens},
            )  # fmt: skip
