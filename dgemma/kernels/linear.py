"""A matrix product by a weight in which no row's bits depend on how many other rows there are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ROW_TILE = 16
"""Fewest rows of a matrix product. BLAS switches to another summation order below four rows, so
a row's result would depend on how many neighbours it has; padded products do not."""


def rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`, the same for a row whatever the other rows are.

    Args:
        x: [N, K] rows.
        weight: [M, K].

    Returns:
        [N, M] in the dtype of `x`.
    """
    rows = x.shape[0]
    if rows >= ROW_TILE or x.requires_grad:
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, ROW_TILE - rows)), weight)[:rows]
