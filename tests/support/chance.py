"""Chi-square for tests of random numbers: the statistic and a limit with a stated false alarm.

Random tests here have fixed seeds, so they pass or fail for good; the chance is that of a right
implementation being unlucky when the seed, or the stream, is changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGMAS = 5.0
FALSE_ALARM = 3e-7
"""Chance that a right implementation exceeds `chi_square_limit` (five sigma, one-sided)."""


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells expecting under 10 are put together."""
    counts, expected = counts.double(), expected.double()
    rare = expected < 10
    if rare.any():
        counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    return ((counts - expected) ** 2 / expected).sum().item(), len(counts) - 1


def chi_square_limit(freedom: int) -> float:
    """Exceeded with probability `FALSE_ALARM` (Wilson and Hilferty's approximation)."""
    part: float = 2 / (9 * freedom)
    return freedom * (1 - part + SIGMAS * part**0.5) ** 3
