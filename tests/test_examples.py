"""The examples: they are short, linked from the README, and run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 40


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    """Catches an example that the interface has left behind, or that warns a newcomer."""
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example left files behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_is_short_and_linked(path: Path) -> None:
    """Catches an example that nobody can find, or that grew into a program."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"](examples/{path.name})" in readme
