"""The arithmetic of a report: medians, ratios, shares."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ratio of the medians; NaN where one is missing or zero."""
    below = median(theirs)
    return median(ours) / below if below else float("nan")


def shares(total: float, parts: dict[str, float]) -> dict[str, float]:
    """The parts and "rest", the remainder of the total; never below zero."""
    return {**parts, "rest": max(0.0, total - sum(parts.values()))}
