"""The thinking budget: counting thought tokens wherever a border is looked at."""

from __future__ import annotations

import pytest

from dgemma.diffusion.thought import budget_exceeded
from dgemma.request_parts import ThoughtIds

OPEN, CLOSE = 100, 101


@pytest.mark.parametrize(
    ("ids", "budget", "expected"),
    [
        ([OPEN, 1, 2], 3, False),
        ([OPEN, 1, 2, 3], 3, True),  # one more would be past it
        ([OPEN, 1, 2, 3, CLOSE], 3, False),  # nothing left to close
        ([1, 2, 3, 4], 0, False),  # no thought
        ([OPEN], 0, True),
        ([OPEN, 1, 2, CLOSE, 7, 8, OPEN, 3], 3, True),  # thoughts count together
        ([OPEN, 1, 2, CLOSE, 7, 8, OPEN, 3], 4, False),  # the answer between does not count
        ([OPEN, 1, 2, 3], None, False),
    ],
)
def test_budget(ids: list[int], budget: int | None, expected: bool) -> None:
    """Markers counted as thought, answers counted as thought, or a closed one closed again."""
    assert budget_exceeded(ids, ThoughtIds(OPEN, CLOSE), budget) is expected


def test_thought_opened_by_the_prompt() -> None:
    """The template may end inside a thought: then the answer holds no opening marker."""
    thought = ThoughtIds(OPEN, CLOSE, is_open=True)
    assert budget_exceeded([1, 2], thought, 2)
    assert not budget_exceeded([1], thought, 2)
    assert budget_exceeded([], thought, 0)
    assert not budget_exceeded([1, CLOSE, 2, 3], thought, 2)
