"""Tests name the faults that they show mended."""

from __future__ import annotations

import re

from tests.support.fault_list import FAULTS, OWNED
from tests.support.sources import ROOT, python_files

MARK = re.compile(r"pytest\.mark\.fault\(([^)]*)\)")


def marked() -> dict[str, list[str]]:
    """Fault -> the test files that name it."""
    found: dict[str, list[str]] = {}
    for path in python_files("tests"):
        for names in MARK.findall(path.read_text(encoding="utf-8")):
            for name in re.findall(r'"([^"]+)"', names):
                found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_marks_name_faults_that_are_listed() -> None:
    """Catches a mark with a misspelt number, which would count for nothing."""
    assert not set(marked()) - set(FAULTS)


def test_every_fault_has_a_test_or_an_owner() -> None:
    """Catches a fault of the lists that nobody looked at, and one that is owned and mended."""
    have = set(marked())
    assert not set(OWNED) - set(FAULTS)
    assert not [name for name in FAULTS if name not in have and name not in OWNED]
