"""Unsigned integers with a scale and a bias for each group of columns, as MLX writes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dgemma.quant.float8 import spread
from dgemma.quant.packed import Groups, Parts


def bit_stream(stream: Tensor, bits: int) -> Tensor:
    """Codes of a little-endian bit stream: uint8 [..., B] -> uint8 or int64 [..., 8 B / bits].

    Eight codes take `bits` bytes: a shorter rest is filled up. Of 8 bits the stream is the codes.
    """
    if bits == 8:
        return stream
    if bits == 4:
        return torch.stack([stream & 15, stream >> 4], -1).flatten(-2)
    stream = functional.pad(stream, (0, -stream.shape[-1] % bits))
    eights = stream.reshape(*stream.shape[:-1], -1, bits).to(torch.int64)
    words = sum(eights[..., i] << (8 * i) for i in range(bits))
    assert isinstance(words, Tensor)
    shifts = torch.arange(0, 8 * bits, bits, device=stream.device)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


@dataclass(frozen=True, slots=True)
class Affine:
    """Codes, a bit stream of bytes [..., R, K bits / 8]: w = scale * code + bias; see `Format`.

    Scales and biases are [..., R, G].

    Attributes:
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group: columns that share a scale and a bias.
    """

    bits: int
    group: int

    @property
    def name(self) -> str:
        """See `Format`."""
        return f"affine int{self.bits} in groups of {self.group}"

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        scale, bias = (
            spread(parts[name].to(torch.float32), self.group, columns) for name in ("scale", "bias")
        )
        codes = bit_stream(parts["codes"], self.bits)[..., :columns].to(torch.float32)
        return codes.mul_(scale).add_(bias)

    @property
    def four_bits(self) -> bool:
        """See `GroupedFormat`."""
        return self.bits <= 4

    def groups(self, parts: Parts, columns: int) -> Groups:
        """See `GroupedFormat`."""
        codes = bit_stream(parts["codes"], self.bits)[..., :columns].to(torch.uint8)
        scale, bias = (parts[name].to(torch.float32) for name in ("scale", "bias"))
        return Groups(codes, scale, bias, self.group)
