"""8-bit floats (e4m3) with a scale for each row, or for each group of columns of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.packed import Parts


def spread(scale: Tensor, group: int, columns: int) -> Tensor:
    """A scale for each column: [..., G] -> [..., K]; the last group may be cut short."""
    if group >= columns:
        return scale
    return scale.repeat_interleave(group, -1)[..., :columns]


@dataclass(frozen=True, slots=True)
class Float8:
    """Codes e4m3 [..., R, K] times scales [..., R, G]; see `Format`.

    Attributes:
        group: columns that share a scale; 0: all of a row.
    """

    group: int = 0

    @property
    def name(self) -> str:
        """See `Format`."""
        return f"fp8 in groups of {self.group}" if self.group else "fp8"

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        scale = parts["scale"].to(torch.float32)
        return parts["codes"].to(torch.float32) * spread(scale, self.group or columns, columns)
