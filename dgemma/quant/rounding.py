"""Rounds a matrix to a packed format: the tensors that files have of it, and what they then mean.

The layouts are those of compressed-tensors; `quant/gguf_rounding.py` has blocks. Nothing here knows
names or files. Everything is computed in fp32 from the scales as they are stored, so that codes
make up for the rounding of a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from dgemma.quant.float4 import E2M1, E2M1_SIGNED
from dgemma.quant.float8 import e4m3_numbers

E4M3_MOST = 448.0
CLIPS = tuple(1.05 - 0.025 * step for step in range(15))
"""Shares of a group's range that the search tries: what lies outside is clipped."""
SMALLEST = torch.finfo(torch.bfloat16).tiny
E2M1_BORDERS = tuple((low + high) / 2 for low, high in zip(E2M1, E2M1[1:], strict=False))
"""Halfway between neighbours; a number there goes to the lower one."""


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A matrix in a packed format.

    Attributes:
        parts: the tensors to store, by the words behind the module's name.
        numbers: what they mean, fp32 [R, K].
    """

    parts: dict[str, Tensor]
    numbers: Tensor


class Rounding(Protocol):
    """A packed format that can be written."""

    @property
    def layout(self) -> str:
        """The name of compressed-tensors for it."""

    @property
    def rule(self) -> dict[str, Any]:
        """What its config says of the weights."""

    def round(self, weight: Tensor, importance: Tensor | None = None) -> Rounded:
        """Round a matrix; on the meta device only the shapes are made.

        Args:
            weight: fp32 [R, K].
            importance: fp32 [K], how much an error in each column counts; None: all the same.
        """


@dataclass(frozen=True, slots=True)
class Float8Rows:
    """e4m3 with a bf16 scale for each row; see `Rounding`."""

    @property
    def layout(self) -> str:
        """See `Rounding`."""
        return "float-quantized"

    @property
    def rule(self) -> dict[str, Any]:
        """See `Rounding`."""
        return {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}

    def round(self, weight: Tensor, importance: Tensor | None = None) -> Rounded:
        """See `Rounding`."""
        scale = stored_scale(weight.abs().amax(-1, keepdim=True) / E4M3_MOST)
        used = scale.to(torch.float32)
        codes = (weight / used).clamp_(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn)
        parts = {"weight": codes, "weight_scale": scale}
        return Rounded(parts, weight if weight.is_meta else e4m3_numbers(codes) * used)


@dataclass(frozen=True, slots=True)
class PackedInts:
    """Integers with a bf16 scale for each group of columns, in words of 32 bits; see `Rounding`.

    Attributes:
        bits: 4 or 8.
        group: columns that share a scale; 0: all of a row.
        symmetric: zero is the code 0; else each group has a code for it.
        search: try the `CLIPS` of each group and take that of the least error.
    """

    bits: int
    group: int
    symmetric: bool
    search: bool

    @property
    def layout(self) -> str:
        """See `Rounding`."""
        return "pack-quantized"

    @property
    def rule(self) -> dict[str, Any]:
        """See `Rounding`."""
        found = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        if self.group:
            return {**found, "strategy": "group", "group_size": self.group}
        return {**found, "strategy": "channel"}

    def round(self, weight: Tensor, importance: Tensor | None = None) -> Rounded:
        """See `Rounding`."""
        rows, columns = weight.shape
        groups = weight.view(rows, -1, self.group or columns)
        counts = torch.ones(1) if importance is None else importance.view(groups.shape[1:])
        scale, zero = self._grid(groups, 1.0)
        if self.search and not weight.is_meta:
            scale, zero = self._searched(groups, counts)
        codes = self._codes(groups, scale, zero)
        numbers = (codes - zero).mul_(scale.to(torch.float32)).view(weight.shape)
        offset = 1 << (self.bits - 1)
        parts = {
            "weight_packed": words(codes.add_(offset).view(weight.shape), self.bits),
            "weight_scale": scale.squeeze(-1),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not self.symmetric:
            zeros = (zero + offset).squeeze(-1).T  # packed along the rows
            parts["weight_zero_point"] = words(zeros, self.bits).T.contiguous()
        return Rounded(parts, numbers)

    def _grid(self, groups: Tensor, clip: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """Scale, bf16, and code of zero, fp32, of each group for a share of its range.

        Args:
            shift: of the code of zero, before it is rounded.
        """
        low, high = torch.aminmax(groups, dim=-1, keepdim=True)
        if self.symmetric:
            most = torch.maximum(-low, high) * clip
            return stored_scale(most / (2**self.bits - 1) * 2), torch.zeros_like(most)
        low, high = low.clamp(max=0) * clip, high.clamp(min=0) * clip
        scale = stored_scale((high - low) / (2**self.bits - 1))
        half = 1 << (self.bits - 1)
        zero = (shift - low / scale.to(torch.float32) - half).round_().clamp_(-half, half - 1)
        return scale, zero

    def _codes(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        half = 1 << (self.bits - 1)
        codes = (groups / scale.to(torch.float32)).round_().add_(zero)
        return codes.clamp_(-half, half - 1)

    def _searched(self, groups: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The grid of the least weighted error of each group."""
        least = torch.full((*groups.shape[:-1], 1), torch.inf)
        best = self._grid(groups, 1.0)
        shifts = (0.0,) if self.symmetric else (-0.5, 0.5)
        for clip, shift in product(CLIPS, shifts):
            scale, zero = self._grid(groups, clip, shift)
            found = (self._codes(groups, scale, zero) - zero).mul_(scale.to(torch.float32))
            error = found.sub_(groups).square_().mul_(counts).sum(-1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        return best


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """e2m1 with a power of two for each 32 columns, the last ones perhaps fewer; see `Rounding`.

    Of the two powers that come into question, each group has that of the lesser error.
    """

    @property
    def layout(self) -> str:
        """See `Rounding`."""
        return "mxfp4-pack-quantized"

    @property
    def rule(self) -> dict[str, Any]:
        """See `Rounding`."""
        return {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32,
                "symmetric": True, "scale_dtype": "torch.uint8"}  # fmt: skip

    def round(self, weight: Tensor, importance: Tensor | None = None) -> Rounded:
        """See `Rounding`."""
        rows, columns = weight.shape
        groups = torch.nn.functional.pad(weight, (0, -columns % 32)).view(rows, -1, 32)
        most = groups.abs().amax(-1, keepdim=True).clamp_(min=2.0**-120)
        first = torch.floor(torch.log2(most)) - 2  # the greatest number is 6 = 1.5 x 2^2
        exponent, codes = first, torch.zeros_like(groups, dtype=torch.int64)
        least = torch.full(most.shape, torch.inf)
        for power in (first, first + 1):
            scale = torch.exp2(power)
            made = e2m1_codes(groups / scale)
            if weight.is_meta:
                codes = made
                break
            error = (_numbers(made) * scale).sub_(groups).square_().sum(-1, keepdim=True)
            better = error < least
            exponent, codes = torch.where(better, power, exponent), torch.where(better, made, codes)
            least = torch.where(better, error, least)
        flat = codes.to(torch.uint8).view(rows, -1)[:, :columns]
        parts = {
            "weight_packed": flat[:, 0::2] | (flat[:, 1::2] << 4),
            "weight_scale": (exponent.squeeze(-1) + 127).to(torch.uint8),
        }
        if weight.is_meta:
            return Rounded(parts, weight)
        numbers = _numbers(codes) * torch.exp2(exponent)
        return Rounded(parts, numbers.view(rows, -1)[:, :columns])


def stored_scale(scale: Tensor) -> Tensor:
    """A scale as it is stored: bf16, never zero."""
    return scale.to(torch.bfloat16).clamp_(min=SMALLEST)


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 on as a little-endian stream in words of 32 bits: [..., K] -> int32 [..., W]."""
    each = 32 // bits
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % each))
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    # A copy: a single row counts as contiguous whatever its stride.
    return codes.clone(memory_format=torch.contiguous_format).view(torch.int32)


def e2m1_codes(values: Tensor) -> Tensor:
    """The nearest e2m1 of each value as int64 codes; beyond 6 it is 6."""
    borders = torch.tensor(E2M1_BORDERS, device=values.device)
    return torch.bucketize(values.abs(), borders) + 8 * (values < 0)


def _numbers(codes: Tensor) -> Tensor:
    return torch.tensor(E2M1_SIGNED)[codes]
