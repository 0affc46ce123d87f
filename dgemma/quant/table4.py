"""Codes of 4 bit that look numbers up, with a scale for each group of columns: nf4 and the like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.float4 import pairs
from dgemma.quant.float8 import spread
from dgemma.quant.packed import Parts


@dataclass(frozen=True, slots=True)
class Table4:
    """Codes, two a byte, the low four bits first, uint8 [..., R, K/2]; see `Format`.

    Scales are [..., R, G]; w = table[code] * scale.

    Attributes:
        kind: its name, "nf4".
        group: columns that share a scale.
        table: 16 numbers.
    """

    kind: str
    group: int
    table: tuple[float, ...]

    @property
    def name(self) -> str:
        """See `Format`."""
        return f"{self.kind} in groups of {self.group}"

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        numbers = pairs(parts["codes"], self.table)[..., :columns]
        return numbers * spread(parts["scale"].to(torch.float32), self.group, columns)
