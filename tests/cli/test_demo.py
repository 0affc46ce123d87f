"""`dgemma demo`: both ways side by side on a terminal, one after the other as plain text."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.cli import boards, live
from dgemma.cli.boards import SIDE, WRONG, Puzzle, Side, board, grid, pause, picture
from dgemma.cli.cells import width
from dgemma.cli.main import main
from dgemma.weights.find import bundled_models
from tests.support import documents
from tests.support.commands import Ran
from tests.support.sources import ROOT
from tests.support.terminal import Terminal

GIVEN = ["1........", *["." * 9] * 8]
RIGHT = ["123456789"] * 9
PUZZLE = Puzzle(GIVEN, RIGHT)


def letters(text: str) -> list[tuple[str, str]]:
    """Letters without a style."""
    return [(char, "") for char in text]


def side(passes: int, text: str = "\n".join(RIGHT)) -> Side:
    """A way of so many passes."""
    drafts = [letters("")] * passes + [letters(text)]
    return Side("A way", drafts, [f"pass {k}" for k in range(passes + 1)], "done")


def test_a_grid_of_anything() -> None:
    """A draft with too many letters, or wide ones, or none, breaks the board."""
    for text in ("", "1\n\n2", "1234567890" * 3, "日\x1b[2J\n", "\n" * 20):
        found = grid(letters(text))
        assert [len(row) for row in found] == [9] * 9
        assert all(width(char) == 1 for row in found for char, _ in row)


@pytest.mark.fault("N 18")
@pytest.mark.parametrize("colours", [True, False])
def test_given_and_wrong_cells_are_marked(colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees what was wrong, or only those do who see colours."""
    monkeypatch.setenv("NO_COLOR", "" if colours else "1")
    draft = letters("\n".join(["193456789", *RIGHT[1:]]))
    terminal = Terminal()
    terminal.write(board(PUZZLE, draft, over=True)[0] + "\n" + board(PUZZLE, draft)[0])
    assert terminal.lines() == ["1 9!3 | 4 5 6 | 7 8 9", "1 9 3 | 4 5 6 | 7 8 9"]
    assert terminal.styles("1 9!3")[:4] == ["1", "1", *["31" if colours else ""] * 2]


def test_a_narrow_terminal_has_one_board_above_the_other() -> None:
    """The second board is cut off."""
    wide, narrow = (picture(PUZZLE, (side(3), side(9)), 3, columns) for columns in (80, 60))
    assert wide.split("\n")[0].split() == ["A", "way"] * 2 and len(wide.split("\n")) == 14
    assert len(narrow.split("\n")) == 24 and all(width(x) <= SIDE for x in narrow.split("\n"))


@pytest.mark.fault("N 18")
@pytest.mark.parametrize(("short", "long"), [(2, 90), (12, 90), (48, 90), (60, 9), (5, 5)])
def test_the_pace(short: int, long: int) -> None:
    """The denoiser is over before one looks, or the other side takes minutes."""
    sides = (side(short), side(long))
    pauses = [pause(tick, sides) for tick in range(max(short, long) + 1)]
    assert 1 < sum(pauses) < 4
    assert sum(pauses[: min(short, long) + 1]) >= 1


@pytest.mark.model
@pytest.mark.fault("N 18", "N 51")
def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts have no board beside them in 80 by 24, or the passes are not counted."""
    terminal, shown = Terminal(80, 24), list[str]()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live.os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr(live.time, "sleep", lambda _: shown.append("\n".join(terminal.lines())))
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["demo", "-m", "nano", "--seed", "1"]) == 0
    lines = terminal.lines()
    assert not terminal.above and lines[0].startswith("dgemma demo: nano, cpu float32, seed 1")
    assert boards.LEGEND in lines and lines[-2] == "I am nano, a small DiffusionGemma."
    [state] = [line for line in lines if line.startswith("pass")]
    steps, tokens = (part.split(",")[0] for part in state.split("  ") if part)
    assert int(steps.split()[1]) < int(tokens.split()[1]) and "96 of 96 accepted" in state
    [verdict] = [line for line in lines if line.startswith("right")]
    assert "wrong: " in verdict and lines[lines.index(verdict) + 1].count(" s") == 2
    assert sum(line.count(WRONG) for line in lines if "|" in line) > 5
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- demo:start -->")[2]
    shown_there = documents.blocks(page)[0].body.removeprefix("$ dgemma demo --seed 1\n")
    assert not documents.difference(shown_there, "\n".join(lines))
    for pass_of in ("pass 1, ", "pass 2, ", "pass 9, "):
        assert any(pass_of in text for text in shown)


@pytest.mark.model
def test_as_text(run: Callable[..., Ran]) -> None:
    """The first thing a newcomer runs fails, or hides a wrong answer."""
    code, out, err = run("demo", "--seed", "1")
    assert (code, err) == (0, "")
    assert out.count("Right: ") + out.count("Wrong: ") == 2
    assert "model passes" in out and "\x1b" not in out


@pytest.mark.model
@pytest.mark.fault("N 51")
def test_another_model(run: Callable[..., Ran], tmp_path: Path) -> None:
    """`demo` knows no `--model`, or blames one for a puzzle that it never saw."""
    other = shutil.copytree(bundled_models()["nano"], tmp_path / "other")
    code, out, err = run("demo", "--model", str(other), "--seed", "1")
    assert (code, err) == (0, "") and str(other) in out and "other models were not" in out
