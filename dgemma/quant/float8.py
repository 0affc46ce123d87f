"""8-bit floats (e4m3) with a scale for each row, or for each group of columns of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.packed import Parts

_NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)


def e4m3_numbers(codes: Tensor) -> Tensor:
    """The numbers of codes, fp32; codes may come as bytes.

    By a table but for CUDA: a CPU converts them one by one, slowly, and Metal has no such dtype.
    """
    if codes.device.type == "cuda":
        return codes.view(torch.float8_e4m3fn).to(torch.float32)
    index = codes.view(torch.uint8).flatten().to(torch.int32)
    return _NUMBERS.to(codes.device).index_select(0, index).view(codes.shape)


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
        return e4m3_numbers(parts["codes"]) * spread(scale, self.group or columns, columns)
