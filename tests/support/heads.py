"""A head over a table that a test gives."""

from __future__ import annotations

from torch import Tensor, nn

from dgemma.kernels.head import Head
from dgemma.model.layers import Embedding


def head_of(table: Tensor, kernel: str = "auto", softcap: float = 30.0) -> Head:
    """The operation on a table [V, D], which is not copied."""
    embedding = Embedding(*table.shape)
    embedding.weight = nn.Parameter(table, requires_grad=False)
    return Head(embedding, softcap, kernel)
