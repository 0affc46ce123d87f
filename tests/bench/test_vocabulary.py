"""`bench vocabulary` on a model too small to time: what it compares is the same operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.commands import Ran

Run = Callable[..., Ran]


def test_both_sides_of_every_kind(tiny: Path, run: Run) -> None:
    """A kind left out, or a ratio that is not of the two columns beside it."""
    code, out, _ = run(
        "vocabulary", str(tiny), "--dtype", "bfloat16", "--rows", "20", "--runs", "1"
    )
    assert code == 0
    rows = [line.split(" | ") for line in out.splitlines() if " | " in line][1:]
    kinds = ["| flat", "| peaked", "| less peaked", "| every second row peaked"]
    assert [row[0] for row in rows if len(row) == 6] == kinds


def test_fp32_is_refused(tiny: Path, run: Run) -> None:
    """A comparison of a thing with itself."""
    code, out, err = run("vocabulary", str(tiny), "--dtype", "float32")
    assert (code, out) == (2, "") and "--dtype bfloat16" in err
