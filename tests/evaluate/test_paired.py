"""Settings compared on the same examples."""

from __future__ import annotations

import math

import pytest

from dgemma.errors import InvalidRequest
from dgemma.evaluate.paired import Setting, as_markdown, compare, difference, parse_setting
from dgemma.params import SamplingParams
from tests.support.nano import nano


def test_settings_are_parsed() -> None:
    """A word that is not JSON is a word; unknown names are refused with the nearest."""
    made = parse_setting("max_steps=12,ignore_tail=true,canvas_length=auto").params
    assert made == SamplingParams(max_steps=12, ignore_tail=True, canvas_length="auto")
    assert parse_setting("").params == SamplingParams()
    for text, said in (("max_step=3", "max_steps"), ("max_steps", "name=value"), ("seed=1", "seed"),
                       ("max_steps=0", "max_steps")):  # fmt: skip
        with pytest.raises(InvalidRequest, match=said):
            parse_setting(text)


def test_differences_are_paired() -> None:
    """Unpaired, the spread between easy and hard examples would hide a small difference."""
    base = [0.0, 1.0] * 50
    better = [1.0, 1.0] + base[2:]
    middle, half = difference(better, base)
    assert middle == 0.01 and half == pytest.approx(1.96 * math.sqrt(0.01 / 100), rel=1e-6)
    assert difference(base, base) == (0.0, 0.0)


def test_passes_that_were_thrown_away_are_shown() -> None:
    """Catches restarts whose price is hidden, or a ratio that is turned round."""
    base, ours = parse_setting(""), parse_setting("restart_after=8,tries=4")
    assert ours.params == SamplingParams(restart_after=8, tries=4)
    base.exact, base.steps, base.discarded = [0.0, 1.0], [6, 2], [0, 0]
    ours.exact, ours.steps, ours.discarded = [1.0, 1.0], [4, 2], [3, 0]
    rows = as_markdown("sudoku", [base, ours]).splitlines()
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|") == rows[3].count("|")
    assert rows[2] == "| as released | 50.0% |  | 4.00 |  | 0.00 | 0.0 |"
    assert rows[3].startswith("| restart_after=8,tries=4 | 100.0% | +50.0 ± ")
    assert rows[3].endswith(" | 3.00 | 0.75 | 1.50 | 0.0 |")


@pytest.mark.model
def test_compare_runs_each_setting_on_the_same_examples() -> None:
    """Fewer steps must show as fewer steps, and the base must not be touched by the others."""
    settings = [parse_setting(""), parse_setting("max_steps=2"), parse_setting("")]
    compare(nano(), "sudoku", settings, 3, 96, report=lambda line: None)
    first, few, again = settings
    assert first.steps == again.steps and first.exact == again.exact
    assert max(few.steps) <= 2 < max(first.steps)
    table = as_markdown("sudoku", settings)
    assert table.count("\n") == 4 and "max_steps=2" in table and "n = 3" in table
    assert isinstance(first, Setting) and first.seconds > 0
