"""Straight lines and percentiles."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many in a hundred lie, linear between neighbours; NaN of nothing."""
    return float(np.percentile(values, percent)) if values else float("nan")


@dataclass(frozen=True, slots=True)
class Fit:
    """The straight line `intercept + slope * x` of least squares.

    Attributes:
        r2: share of the variance that it explains; 1 if there is none.
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
    line = statistics.linear_regression(x, y)
    r2 = statistics.correlation(x, y) ** 2 if len(set(y)) > 1 else 1.0
    return Fit(line.slope, line.intercept, r2)
