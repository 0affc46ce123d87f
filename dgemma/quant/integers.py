"""Integers with a scale, and perhaps a zero point, for each group of columns of a row.

The files of compressed-tensors, GPTQ, AWQ and AutoRound all become this at load. MLX adds a bias in
place of the zero point and has a format of its own, see `affine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.affine import bit_stream
from dgemma.quant.float8 import spread
from dgemma.quant.packed import Groups, Parts


@dataclass(frozen=True, slots=True)
class Integers:
    """w = scale * (code - zero); see `Format`.

    "codes" are a little-endian bit stream along each row, uint8 [..., R, ceil(K bits / 8)]: with 4
    bits two a byte, the low one first. They are int8 [..., R, K] where the files have signed
    numbers. "scale" is [..., R, G]. "zero", integers [..., R, G], is there if `zero` is None.
    "order" is there if `ordered`: the group of each column, uint8 or int16 [..., R, K].

    Attributes:
        bits: of a code, 2 to 8.
        group: columns that share a scale; 0: all of a row. The last group may be smaller.
        zero: the code of 0.0; None: each group has its own.
        ordered: columns are in groups in any order (act-order).
    """

    bits: int
    group: int
    zero: int | None
    ordered: bool = False

    @property
    def name(self) -> str:
        """See `Format`."""
        words = [f"int{self.bits}", f"in groups of {self.group}" if self.group else ""]
        words += ["with zero points" if self.zero is None else "", "in any order" * self.ordered]
        return " ".join(word for word in words if word)

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        codes = bit_stream(parts["codes"], self.bits)[..., :columns].to(torch.float32)
        zero = self.zero if self.zero is not None else self._wide(parts, "zero", columns)
        return codes.sub_(zero).mul_(self._wide(parts, "scale", columns))

    def _wide(self, parts: Parts, word: str, columns: int) -> Tensor:
        """A number for each column."""
        values = parts[word].to(torch.float32)
        if self.ordered:
            return values.gather(-1, parts["order"].to(torch.int64))
        return spread(values, self.group or columns, columns)

    @property
    def four_bits(self) -> bool:
        """See `GroupedFormat`."""
        return self.bits <= 4 and not self.ordered

    def groups(self, parts: Parts, columns: int) -> Groups:
        """See `GroupedFormat`."""
        codes = bit_stream(parts["codes"], self.bits)[..., :columns].to(torch.uint8)
        scale = parts["scale"].to(torch.float32)
        zero = parts["zero"].to(torch.float32) if self.zero is None else self.zero
        return Groups(codes, scale, -zero * scale, self.group or columns)
