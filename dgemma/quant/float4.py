"""4-bit floats (e2m1) with a scale for each group of columns: NVFP4 and MXFP4.

Source: the OCP Microscaling Formats specification 1.0, and the headers of published files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.float8 import spread
from dgemma.quant.packed import Groups, Parts

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_SIGNED = E2M1 + tuple(-value for value in E2M1)
"""By code; bit 3 is the sign."""


def pairs(codes: Tensor, numbers: tuple[float, ...]) -> Tensor:
    """Numbers of two codes a byte, the low four bits first: uint8 [..., B] -> fp32 [..., 2B].

    Args:
        numbers: of the 16 codes.
    """
    table = torch.tensor(numbers, device=codes.device)
    both = torch.stack([table.repeat(16), table.repeat_interleave(16)], -1)  # [256, 2]
    found = both.index_select(0, codes.flatten().to(torch.int32))
    return found.view(*codes.shape[:-1], 2 * codes.shape[-1])


@dataclass(frozen=True, slots=True)
class Float4:
    """Codes, two a byte, [..., R, K/2] times scales [..., R, G], times "outer" [..., R, 1] if any.

    A tensor's own scale is such an outer one, kept for each row: matrices that are joined keep
    theirs. See `Format`.

    Attributes:
        group: columns that share a scale.
    """

    group: int

    @property
    def name(self) -> str:
        """See `Format`."""
        return f"fp4 in groups of {self.group}"

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        numbers = pairs(parts["codes"], E2M1_SIGNED)[..., :columns]
        # Exact so far: two significant bits times four. The outer scale rounds once.
        numbers = numbers * spread(parts["scale"].to(torch.float32), self.group, columns)
        return numbers * parts["outer"] if "outer" in parts else numbers

    @property
    def four_bits(self) -> bool:
        """See `GroupedFormat`."""
        return True

    def groups(self, parts: Parts, columns: int) -> Groups:
        """See `GroupedFormat`."""
        low, high = parts["codes"] & 15, parts["codes"] >> 4
        codes = torch.stack([low, high], -1).flatten(-2)[..., :columns]
        scale = parts["scale"].to(torch.float32)
        scale = scale * parts["outer"] if "outer" in parts else scale
        return Groups(codes, scale, None, self.group)
