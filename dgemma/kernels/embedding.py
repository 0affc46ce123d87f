"""The interface of an embedding table to the head, however its numbers are stored."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class EmbeddingTable(Protocol):
    """One row an id. Token embedding, head and soft embedding read it through these methods alone.

    Attributes:
        size, width: V and D.
    """

    size: int
    width: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows as they are handed out, whatever they are stored in."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def scale(self) -> Tensor:
        """The scalar that a row is multiplied by to be the input of the network."""

    def rows(self, ids: Tensor) -> Tensor:
        """Unscaled rows of int64 ids: [...] -> [..., D]."""

    def tile(self, low: int, high: int) -> Tensor:
        """Unscaled rows of the ids low..high-1, [high - low, D]; a view if that is possible."""
