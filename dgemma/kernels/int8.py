"""Products of 8-bit integers on a CPU: weights per channel, rows per token.

A row becomes uint8 with the zero point 128, which is what oneDNN has fast code for; with int8 rows
it runs a loop that is thousands of times slower. Knows nothing about formats of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.workspace import WORKSPACE

ZERO = 128
"""The code of zero."""


def has_int8(device: torch.device) -> tuple[bool, str]:
    """Whether this machine multiplies 8-bit integers fast and without overflow, and why."""
    if device.type != "cpu":
        return False, str(device)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False, "this torch has no oneDNN"
    if torch.cpu._is_amx_tile_supported():
        return True, "AMX"
    if torch.cpu._is_vnni_supported():
        return True, "VNNI"
    return False, "this processor has no VNNI"


BLOCK = 64
"""Rows and columns that oneDNN packs together."""
CACHED = 1 << 17
"""Numbers that are rounded at a time, so that they stay in the cache."""


class Weights8(Protocol):
    """A matrix [R, K] that is multiplied as 8-bit integers."""

    @property
    def nbytes(self) -> int:
        """All that is kept."""

    def product(self, codes: Tensor) -> Tensor:
        """[N, K] codes of rows -> fp32 [N, R], still without the rows' own scales."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [N, K] and scales fp32 [N, 1] of rows: x = scale * (code - 128), rounded."""
    # One dtype at a time: torch is up to ten times slower with two in one operation.
    wide = WORKSPACE.take("rows before codes", len(x), x.shape[1], x, torch.float32).copy_(x)
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    scale = torch.maximum(high, low.neg_()).clamp_(min=1e-30).div_(127)
    wide.mul_(scale.reciprocal())
    # The cast cuts off: half more rounds, and no code is below 1.
    return wide.add_(ZERO + 0.5).to(torch.uint8), scale


class Int8Matrix:
    """Weights int8 [R, K] with a scale for each channel, packed for oneDNN."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        """Pack them.

        Args:
            codes: int8 [R, K], from -127 to 127.
            scale: fp32 [R].
        """
        self.scale, self.zero = scale, torch.zeros(len(scale), dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)

    @property
    def nbytes(self) -> int:
        """See `Weights8`."""
        packed: int = torch.ops.mkldnn._nbytes(self.packed)
        return packed + self.scale.nbytes + self.zero.nbytes

    def product(self, codes: Tensor) -> Tensor:
        """See `Weights8`."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, ZERO, self.packed, self.scale, self.zero, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        return out


def int8_bytes(rows: int, columns: int) -> int:
    """What an `Int8Matrix` keeps: oneDNN fills blocks of 64 up, and sums each channel."""
    high, wide = -(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK
    return high * wide + 4 * high + 12 * rows


def quantise_channels(rows: Callable[[int, int], Tensor], shape: tuple[int, int]) -> Int8Matrix:
    """The nearest int8 of each number of a matrix, by the largest of its channel.

    Args:
        rows: low and high -> the rows between, fp32 [high - low, K], to be written over.
        shape: R and K.
    """
    codes, scales = torch.empty(shape, dtype=torch.int8), torch.empty(shape[0])
    step = max(1, CACHED // shape[1])
    for low in range(0, shape[0], step):
        high = min(low + step, shape[0])
        part = rows(low, high)
        scale = torch.maximum(part.amax(-1), -part.amin(-1)).clamp_(min=1e-30).div_(127)
        scales[low:high] = scale
        codes[low:high] = part.mul_(scale.reciprocal()[:, None]).round_()
    return Int8Matrix(codes, scales)


def linear_8bit(x: Tensor, weight: Weights8) -> Tensor:
    """`x @ W.T` with rows rounded to 8 bit: [N, K] -> [N, R] in the dtype of `x`."""
    codes, scale = quantise_rows(x)
    return weight.product(codes).mul_(scale).to(x.dtype)


def experts_8bit(
    x: Tensor, index: Tensor, weight: Tensor,
    gate_up: Sequence[Weights8], down: Sequence[Weights8],
) -> Tensor:  # fmt: skip
    """`experts_grouped` with rows, and what the activation makes of them, rounded to 8 bit."""
    rows, top_k = index.shape
    order = index.flatten().argsort(stable=True)  # assignments, grouped by expert
    counts = torch.bincount(index.flatten(), minlength=len(gate_up)).tolist()
    ends = list(accumulate(counts))
    used = [
        (e, slice(end - n, end)) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n
    ]
    codes, scale = quantise_rows(x)
    theirs = order // top_k
    codes = codes.index_select(0, theirs)
    inner = torch.cat([gate_up[e].product(codes[here]) for e, here in used])
    inner.mul_(scale.index_select(0, theirs))
    gate, up = inner.chunk(2, dim=-1)
    codes, scale = quantise_rows(F.gelu(gate, approximate="tanh").mul_(up))
    out = torch.cat([down[e].product(codes[here]) for e, here in used])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    mix = weight * scale[:, 0][place].view(rows, top_k)  # a row's scale and its expert's weight
    summed = torch.zeros(x.shape, dtype=torch.float32)
    for k, slots in enumerate(place.view(rows, top_k).unbind(1)):
        summed.addcmul_(out.index_select(0, slots), mix[:, k, None])
    return summed.to(x.dtype)
