"""Products of 4-bit weights on a CPU: unpacked into a kept buffer of int8, then as 8-bit ones.

Two small integers for each group turn a code into int8: `step * code + start`, in units of the
channel's scale. So the scales of groups cost one pass over bytes and the product knows only
channels. Bytes hold the halves of K: code k in the low half of byte k, code k + K/2 in the high
one. Knows nothing about formats of files.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from dgemma.kernels.int8 import ZERO
from dgemma.kernels.workspace import WORKSPACE

LOW = 0x0F0F0F0F0F0F0F0F
"""The low halves of eight bytes."""

STRETCHES = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12)
"""Scales of a channel that are tried, over the smallest that holds all its numbers."""


def int4_bytes(rows: int, columns: int, group: int) -> int:
    """What an `Int4Matrix` keeps."""
    groups = columns // gcd(group, columns // 2)
    return rows * (columns // 2 + 2 * groups + 8)


class Int4Matrix:
    """Weights [R, K] of 4 bits with a scale and a bias for each group of columns.

    The integers round the step of a group; the codes stay what they are. Against the numbers of
    codes this adds 1 to 3 % to the error of a weight, where rounding to 4 bits has 8 to 12 %.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None, group: int) -> None:
        """Pack w = scale * code + bias, or scale * e2m1(code) if there is no bias.

        Args:
            codes: uint8 [R, K], from 0 to 15; K even.
            scale, bias: fp32 [R, G]; the last group may be cut short.
            group: columns of a group.
        """
        rows, columns = codes.shape
        half, fine = columns // 2, gcd(group, columns // 2)
        starts = torch.arange(0, columns, fine) // group  # a group does not cross the halves
        scale = scale[:, starts]
        self.e2m1 = bias is None
        if bias is None:
            signed = codes.to(torch.int8)
            codes = torch.where(signed < 8, signed, 8 - signed).view(torch.uint8) & 15
            self.scale, step, start = _integers(scale / 2, torch.zeros_like(scale), -12, 12)
        else:
            self.scale, step, start = _integers(scale, bias[:, starts], 0, 15)
        shape = (2, half // fine, 1, rows)
        self.step = step.T.contiguous().view(shape)
        self.start = start.T.contiguous().view(shape)
        low, high = codes.T.view(2, half, rows)
        self.codes = (low | (high << 4)).contiguous()  # [K/2, R]
        self.shift = ZERO * self.unpacked().sum(0, dtype=torch.int32)  # of the rows' zero point

    @property
    def nbytes(self) -> int:
        """See `Weights8`."""
        kept = (self.codes, self.step, self.start, self.scale, self.shift)
        return sum(part.nbytes for part in kept)

    def unpacked(self) -> Tensor:
        """int8 [K, R], in memory that the next call uses again."""
        half, rows = self.codes.shape
        out = WORKSPACE.take("weights of 4 bits", 2 * half, rows, self.codes, torch.int8)
        low, high = out.view(torch.uint8).view(2, half, rows)
        if rows % 8:
            torch.bitwise_and(self.codes, 15, out=low)
        else:
            torch.bitwise_and(self.codes.view(torch.int64), LOW, out=low.view(torch.int64))
        torch.bitwise_right_shift(self.codes, 4, out=high)
        if self.e2m1:
            _doubled_e2m1(out)
        groups = out.view(2, self.step.shape[1], -1, rows)
        return torch.addcmul(self.start, groups, self.step, out=groups).view(-1, rows)

    def product(self, codes: Tensor) -> Tensor:
        """See `Weights8`."""
        found = torch._int_mm(codes, self.unpacked()).sub_(self.shift)
        return found.to(torch.float32).mul_(self.scale)


def _doubled_e2m1(codes: Tensor) -> None:
    """In place: twice the number of each code, which is the place of it, from -7 to 7, in 4 bits.

    The numbers are 0 to 4 in steps of 1, then 6, 8, 12.
    """
    places = codes.bitwise_left_shift_(4).bitwise_right_shift_(4)
    rows, width = codes.shape
    to_4 = torch.clamp(places, -4, 4, out=WORKSPACE.take("places to 4", rows, width, codes))
    to_6 = torch.clamp(places, -6, 6, out=WORKSPACE.take("places to 6", rows, width, codes))
    places.mul_(4).sub_(to_4).sub_(to_6, alpha=2)


def _integers(scale: Tensor, bias: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """A scale for each channel, fp32 [R], and step and start of each group, int8 [R, G].

    `step * code + start` wraps around on the way and never in the end: it lies within -128..127.

    Args:
        scale, bias: fp32 [R, G].
        low, high: of the codes.
    """
    middle, width = (low + high) / 2, high - low
    most = torch.maximum((bias + low * scale).abs(), (bias + high * scale).abs())
    least = most.amax(-1, keepdim=True).clamp(min=1e-30) / 127
    best = torch.full_like(least, torch.inf)
    chosen = least.clone()
    for stretch in STRETCHES:
        unit = least * stretch
        steps = scale / unit
        error = ((steps - steps.round()) * unit).square().sum(-1, keepdim=True)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, unit, chosen)
    most_step = 255 // width
    step = (scale / chosen).round().clamp(-most_step, most_step)
    start = ((bias + middle * scale) / chosen - middle * step).round()  # true in the middle
    # A rounded step may carry the ends out of the range: the start gives way.
    ends = torch.stack([start + low * step, start + high * step])
    least_end, most_end = ends.amin(0), ends.amax(0)
    start = start - (most_end - 127).clamp(min=0) + (-128 - least_end).clamp(min=0)
    return chosen[:, 0], step.to(torch.int8), start.to(torch.int8)
