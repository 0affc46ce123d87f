"""Two ways to solve a Sudoku, drawn side by side, one pass of the model at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.cli.cells import cell_width, clean, width
from dgemma.cli.keys import unseen_keys
from dgemma.cli.live import Screen
from dgemma.cli.paint import BOLD, RESET, wants_colour

Letter = tuple[str, str]
"""A character and its style."""
SIDE, GAP = 34, 4
"""Columns of one board with the lines below it, and between the two."""
WATCH_S, REST_S, MOST_S = 2.0, 1.2, 0.4
"""Seconds for the passes of the shorter side, and for the rest; most seconds for one pass."""
WRONG, WRONG_COLOUR = "!", "\x1b[31m"
LEGEND = f"Bold cells are given; {WRONG} marks wrong ones."


@dataclass(frozen=True, slots=True)
class Puzzle:
    """The nine rows of a puzzle, with "." for a blank, and those of its solution."""

    given: Sequence[str]
    solution: Sequence[str]


@dataclass(frozen=True, slots=True)
class Side:
    """One way to solve it.

    Attributes:
        title: above the board.
        drafts: the letters after each pass.
        states: the line below the board after each pass.
        verdict: the lines that are added after the last one, as many on each side.
    """

    title: str
    drafts: Sequence[Sequence[Letter]]
    states: Sequence[str]
    verdict: str


def grid(letters: Sequence[Letter]) -> list[list[Letter]]:
    """Nine rows of nine letters; what a draft has too much is left out."""
    lines: list[list[Letter]] = [[]]
    for letter in letters:
        if letter[0] == "\n":
            lines.append([])
        else:
            char = clean(letter[0])
            lines[-1].append((char if cell_width(char) == 1 else "?", letter[1]))
    blank = (" ", "")
    lines += [[]] * 9
    return [[*line, *[blank] * 9][:9] for line in lines[:9]]


def board(
    puzzle: Puzzle, letters: Sequence[Letter], *, over: bool = False, dense: bool = False
) -> list[str]:
    """The rows of a board.

    Args:
        over: mark the wrong cells.
        dense: leave out the lines between boxes.
    """
    out = []
    for number, line in enumerate(grid(letters)):
        row = []
        for at, (char, style) in enumerate(line):
            wrong = over and char != puzzle.solution[number][at]
            style += BOLD if puzzle.given[number][at] != "." else ""
            style += WRONG_COLOUR if wrong and wants_colour() else ""
            mark = WRONG if wrong else " "
            row.append(f"{style}{char}{mark}{RESET}" if style else f"{char}{mark}")
        out.append("| ".join("".join(row[at : at + 3]) for at in (0, 3, 6)))
        if number in (2, 5) and not dense:
            out.append("------+-------+------")
    return out


def picture(puzzle: Puzzle, sides: Sequence[Side], tick: int, columns: int) -> str:
    """Both boards after so many passes; the one above the other if the terminal is narrow."""
    wide = columns >= 2 * SIDE + GAP
    blocks = []
    for side in sides:
        at = min(tick, len(side.drafts) - 1)
        over = tick >= len(side.drafts) - 1
        rows = board(puzzle, side.drafts[at], over=over, dense=not wide)
        verdict = side.verdict if over else re.sub("[^\n]", "", side.verdict)
        blocks.append([side.title, *rows, side.states[at], *verdict.split("\n")])
    if not wide:
        return "\n".join(row for block in blocks for row in block)
    return "\n".join(
        left + " " * (SIDE + GAP - width(left)) + right for left, right in zip(*blocks, strict=True)
    )


def pause(tick: int, sides: Sequence[Side]) -> float:
    """Seconds that the picture after this pass stays."""
    short, long = sorted(len(side.drafts) for side in sides)
    return min(MOST_S, WATCH_S / short) if tick < short else REST_S / (long - short)


def race(puzzle: Puzzle, sides: Sequence[Side], screen: Screen) -> None:
    """Show both sides from the first pass to the last; the last picture stays."""
    last = max(len(side.drafts) for side in sides) - 1
    tick = 0
    with unseen_keys():
        try:
            for tick in range(last + 1):
                screen.draw(picture(puzzle, sides, tick, screen.size()[0]))
                time.sleep(pause(tick, sides))
        finally:
            screen.end(picture(puzzle, sides, tick, screen.size()[0]) + "\n")
