"""The two small kernels of the streamed head on CUDA, in Triton.

    absorb    a tile of raw products -> its weights and block sums, in two sweeps over the row
    block     the 256 products of one block of ids a row, for the sample

The large products around them stay cuBLAS's. Needs the `triton` package; with TRITON_INTERPRET=1
set before this module is imported it runs on the CPU, for tests, in fp32 and fp16. Knows nothing
about controls: barred ids come as -inf. The plain reference is `head_tiles`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.kernels.launch import FUSED
from dgemma.kernels.sampling import BLOCK, LOWEST, BlockSums

SWEEP = 16
"""Blocks of 256 ids that a program takes at a time."""

WIDTH_STEP = 128
"""Hidden columns of one step of a block's products."""

BLOCK_PART = 64
"""Ids of a block that one program makes."""


@triton.jit
def _tempered(raw, cap, temperature):
    """cap * tanh(raw / cap) / temperature; -inf stays."""
    y = raw.to(tl.float32)
    capped = cap * (1.0 - 2.0 / (1.0 + tl.exp(y * (2.0 / cap))))
    return tl.where(y == float("-inf"), y, capped) / temperature


@triton.jit(do_not_specialize=["first"])
def _absorb(
    raw,  # [N, width]
    weights,  # [N, width], as raw
    temperature,  # fp32 [N]
    peak,  # fp32 [N], in and out
    shrink,  # fp32 [N]
    best,  # int64 [N], in and out
    top, mass, moment,  # fp32 [N, blocks of the vocabulary]
    cap, first, stride,
    width,  # at run time: a constant would be compiled anew for every size of a batch
    lowest: tl.constexpr, SWEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + row)
    before = tl.load(peak + row)
    highest = before
    winner = tl.load(best + row)
    block = tl.arange(0, SWEEP)
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    for low in range(0, width, SWEEP * BLOCK):
        here = low + place
        x = tl.load(raw + row * width + here, mask=here < width, other=float("-inf"))
        x = _tempered(x, cap, t)
        largest = tl.maximum(tl.max(x, 1), lowest)
        below = x - largest[:, None]
        e = tl.exp(below)
        column = low // BLOCK + block
        out = row * stride + first // BLOCK + column
        inside = column * BLOCK < width
        tl.store(top + out, largest, mask=inside)
        tl.store(mass + out, tl.sum(e, 1), mask=inside)
        # A barred id is at -inf, where e * below would be 0 * inf.
        tl.store(moment + out, tl.sum(e * tl.maximum(below, lowest), 1), mask=inside)
        found = tl.max(largest, 0)
        same = tl.where(x == found, here.to(tl.int64), width)
        index = tl.min(tl.min(same, 1), 0)
        winner = tl.where(found > highest, first + index, winner)
        highest = tl.maximum(highest, found)
    tl.store(peak + row, highest)
    tl.store(best + row, winner)
    tl.store(shrink + row, tl.exp(before - highest))
    for low in range(0, width, SWEEP * BLOCK):
        here = low + place
        inside = here < width
        x = tl.load(raw + row * width + here, mask=inside, other=float("-inf"))
        w = tl.exp(_tempered(x, cap, t) - highest)
        tl.store(weights + row * width + here, w.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _block(
    hidden, table, block, out, size,
    WIDTH: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1) * PART + tl.arange(0, PART)
    ids = tl.load(block + row) * BLOCK + part
    total = tl.zeros((PART,), dtype=tl.float32)
    for low in range(0, WIDTH, STEP):
        column = low + tl.arange(0, STEP)
        there = column < WIDTH
        h = tl.load(hidden + row * WIDTH + column, mask=there, other=0.0).to(tl.float32)
        seen = there[None, :] & (ids < size)[:, None]
        e = tl.load(table + ids[:, None] * WIDTH + column[None, :], mask=seen, other=0.0)
        total += tl.sum(e.to(tl.float32) * h[None, :], 1)
    tl.store(out + row * BLOCK + part, total.to(out.dtype.element_ty))


def absorb(
    raw: Tensor,
    weights: Tensor,
    temperature: Tensor,
    cap: float,
    low: int,
    peak: Tensor,
    best: Tensor,
    sums: BlockSums,
) -> Tensor:
    """Take a tile of raw products into account; see `head_tiles.epilogue`.

    Args:
        raw: [N, T] contiguous, T a multiple of 256; -inf where barred.
        weights: [N, T] of the same dtype, is filled with exp(logit - peak).
        temperature: fp32 [N].
        low: the first id, a multiple of 256.
        peak, best: fp32 and int64 [N], brought up to date in place.
        sums: the tile's columns are filled.

    Returns:
        fp32 [N, 1], the factor by which the sums so far must shrink.
    """
    rows, width = raw.shape
    assert raw.is_contiguous() and weights.is_contiguous() and width % BLOCK == low % BLOCK == 0
    shrink = torch.empty_like(peak)
    _absorb[(rows,)](
        raw, weights, temperature, peak, shrink, best, sums.top, sums.mass, sums.moment,
        cap, low, sums.top.shape[1], width, lowest=LOWEST, SWEEP=SWEEP, BLOCK=BLOCK,
        num_warps=8, **FUSED,
    )  # fmt: skip
    return shrink[:, None]


def block_products(hidden: Tensor, table: Tensor, block: Tensor) -> Tensor:
    """Products of each row with the 256 embeddings of its block.

    Args:
        hidden: [N, D] contiguous.
        table: [V, D] contiguous.
        block: int64 [N].

    Returns:
        [N, 256] in the table's dtype; 0 beyond the vocabulary.
    """
    rows, width = hidden.shape
    out = torch.empty(rows, BLOCK, dtype=table.dtype, device=table.device)
    _block[(rows, BLOCK // BLOCK_PART)](
        hidden, table, block, out, table.shape[0],
        WIDTH=width, STEP=WIDTH_STEP, BLOCK=BLOCK, PART=BLOCK_PART, num_warps=4, **FUSED,
    )  # fmt: skip
    return out
