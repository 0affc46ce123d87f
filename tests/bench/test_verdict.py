"""`bench verdict` on a model too small to time: what it compares is the same answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.commands import Ran

Run = Callable[..., Ran]


def test_both_lengths(tiny: Path, run: Run) -> None:
    """An answer that ends before its canvases are full, or steps that are not all made."""
    code, out, err = run("verdict", str(tiny), "--prompt", "5", "--steps", "3", "--runs", "1")
    assert code == 0, err
    rows = [line.split(" | ") for line in out.splitlines() if " | " in line][1:]
    assert [row[:2] for row in rows if len(row) == 7] == [["| 1", "3"], ["| 2", "6"]]
