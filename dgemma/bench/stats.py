"""The arithmetic of a report: medians, straight lines, ratios.

Knows lists of numbers. Knows nothing about where they come from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def median(values: Sequence[float]) -> float:
    """The middle value; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many in a hundred lie, linear between neighbours; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    at = percent / 100 * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


@dataclass(frozen=True, slots=True)
class Fit:
    """The straight line `intercept + slope * x` of least squares.

    Attributes:
        r2: share of the variance that it explains; 1 where there is none.
    """

    slope: float
    intercept: float
    r2: float

    def at(self, x: float) -> float:
        """The line's value."""
        return self.intercept + self.slope * x


def fit(x: Sequence[float], y: Sequence[float]) -> Fit | None:
    """The line through points; None with fewer than two different x."""
    if len(set(x)) < 2:
        return None
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return Fit(slope, intercept, 1 - left / total if total else 1.0)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ratio of the medians; NaN where one is missing or zero."""
    below = median(theirs)
    return median(ours) / below if below else float("nan")


def shares(total: float, parts: dict[str, float]) -> dict[str, float]:
    """The parts and "rest", what is left of the total; never below zero."""
    return {**parts, "rest": max(0.0, total - sum(parts.values()))}
