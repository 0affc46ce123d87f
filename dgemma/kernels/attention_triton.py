"""Grouped-query attention of one request on CUDA: flash attention in Triton, softmax scale 1.

It takes head size 512, which torch's flash kernel does not, and reads keys and values where they
lie: strided views, no copy, no mask tensor, no matrix of scores. The query heads that share a key
head are rows of one block, so a key is read once for all of them. Where rows are few for the GPU,
the keys are cut into spans that run side by side and are joined by a second kernel.

One request a launch: the requests of a batch own separate buffers, and packing their keys would
copy them. Knows nothing about layers, caches or segments, and has no backward. Two calls of the
same shapes give the same bits. Needs the `triton` package; with TRITON_INTERPRET=1 set before this
module is imported it runs on the CPU, for tests, in any dtype but bf16, whose `dot` is wrong there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.launch import FUSED

FILL = 128
"""Programs wanted at a time: a H100 or H200 has 132 processors, each holding one."""

MOST_SPANS = 32
"""Most spans of keys; each costs a write and a read of the output in fp32."""


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Block sizes: folded query rows, keys, and warps and stages as in Triton."""

    rows: int
    keys: int
    warps: int
    stages: int


def block_sizes(rows: int, head_dim: int, dtype: torch.dtype) -> AttentionTiles:
    """Block sizes for `rows` folded rows (queries x heads of a group), such that they fit.

    Shared memory of a block: rows x hd for the queries and stages x 2 x keys x hd for keys and
    values, plus the probabilities; at most 227 KB on H100 and H200.
    """
    if dtype == torch.float32:
        return AttentionTiles(16, 16, 4, 1)
    if head_dim > 256:  # 64 KB + 2 x 64 KB
        return AttentionTiles(16, 32, 4, 2) if rows <= 16 else AttentionTiles(64, 32, 8, 2)
    return AttentionTiles(16, 64, 4, 2) if rows <= 16 else AttentionTiles(64, 64, 8, 2)


def count_spans(programs: int, blocks: int) -> int:
    """Into how many spans to cut `blocks` blocks of keys: enough programs, 4 blocks at least."""
    return max(1, min(FILL // programs, blocks // 4, MOST_SPANS))


@triton.jit(do_not_specialize=["length", "total", "window", "span"])
def _attend(
    q, keys, values,  # [T, H, hd], [Hkv, S, hd], [Hkv, S, hd]
    out,  # [T, H, hd]; with spans fp32 [spans, T, H, hd], not yet divided
    peaks, sums,  # fp32 [spans, T, H]: base-2 maximum and sum of the weights; with spans only
    q_token, q_head, k_head, k_token, v_head, v_token,  # strides
    length, total, window,  # T, S, keys a query sees
    span,  # keys of a span, a multiple of BLOCK
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, POWER: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of folded rows of one key head over one span of the keys it sees."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held, token = row < length * GROUP, tl.minimum(row // GROUP, length - 1)
    head = tl.program_id(1) * GROUP + row % GROUP
    column = tl.arange(0, POWER)
    inside = column < WIDTH
    place = total - length + token  # of the query among the keys
    q_at = q + token.to(tl.int64)[:, None] * q_token + head[:, None] * q_head + column[None, :]
    query = tl.load(q_at, mask=held[:, None] & inside[None, :], other=0.0)
    low, high = 0, total
    if CAUSAL:
        high = tl.max(place, 0) + 1
        if WINDOWED:
            low = tl.maximum(0, tl.min(place, 0) - window + 1) // BLOCK * BLOCK
    if SPLIT:
        low = low + tl.program_id(2) * span
        high = tl.minimum(high, low + span)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, POWER), tl.float32)
    k_at = keys + tl.program_id(1).to(tl.int64) * k_head + column[:, None]
    v_at = values + tl.program_id(1).to(tl.int64) * v_head + column[None, :]
    for start in range(low, high, BLOCK):
        key = start + tl.arange(0, BLOCK)
        there = key < high
        at = key.to(tl.int64)
        k = tl.load(k_at + at[None, :] * k_token, mask=there[None, :] & inside[:, None], other=0.0)
        scores = tl.dot(query, k, input_precision="ieee") * 1.4426950408889634
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= place[:, None])
            if WINDOWED:
                seen = seen & (key[None, :] > (place - window)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        best = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(best == float("-inf"), 0.0, best)  # no key seen yet: all weights zero
        p, fade = tl.exp2(scores - safe[:, None]), tl.exp2(peak - safe)
        weight = weight * fade + tl.sum(p, 1)
        v = tl.load(v_at + at[:, None] * v_token, mask=there[:, None] & inside[None, :], other=0.0)
        mixed = tl.dot(p.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
        peak = best
    to = token.to(tl.int64) * HEADS + head
    if SPLIT:
        to += tl.program_id(2).to(tl.int64) * length * HEADS
        tl.store(peaks + to, peak, mask=held)
        tl.store(sums + to, weight, mask=held)
    else:
        mixed = mixed / weight[:, None]
    at = out + to[:, None] * WIDTH + column[None, :]
    tl.store(at, mixed.to(out.dtype.element_ty), mask=held[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "spans"])
def _join(
    parts, peaks, sums, out,  # [spans, T*H, hd], [spans, T*H] twice, [T*H, hd]
    rows, spans,  # rows: T*H
    WIDTH: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """One row: its spans, weighed by what each saw. At least one saw a key."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, POWER)
    inside = column < WIDTH
    best = tl.load(peaks + row)
    for span in range(1, spans):
        best = tl.maximum(best, tl.load(peaks + span * rows + row))
    weight = 0.0
    mixed = tl.zeros((POWER,), tl.float32)
    for span in range(spans):
        fade = tl.exp2(tl.load(peaks + span * rows + row) - best)
        weight += fade * tl.load(sums + span * rows + row)
        at = parts + (span * rows + row) * WIDTH + column
        mixed += fade * tl.load(at, mask=inside, other=0.0)
    value = (mixed / weight).to(out.dtype.element_ty)
    tl.store(out + row * WIDTH + column, value, mask=inside)


def check(q: Tensor, keys: Tensor, values: Tensor, window: int | None, causal: bool) -> None:
    """Refuse what the kernel would compute wrongly or without a gradient.

    Raises:
        InvalidRequest: gradients are asked for; dtypes or shapes do not fit; a head is not
            contiguous; no keys; a window below 1 or without `causal`; causal with S < T.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, keys, values)):
        raise InvalidRequest("the Triton attention has no backward: use plain or sdpa")
    if not q.dtype == keys.dtype == values.dtype:
        raise InvalidRequest(f"dtypes differ: {q.dtype}, {keys.dtype}, {values.dtype}")
    shapes = f"q {tuple(q.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}"
    fits = keys.shape == values.shape and q.shape[2] == keys.shape[2] and keys.shape[1] > 0
    if not fits or q.shape[1] % keys.shape[0] or (causal and keys.shape[1] < q.shape[0]):
        raise InvalidRequest(f"shapes do not fit: {shapes}, causal {causal}")
    if any(t.stride(2) != 1 for t in (q, keys, values)):
        raise InvalidRequest("the last axis of q, keys and values must be contiguous")
    if window is not None and (window < 1 or not causal):
        raise InvalidRequest(f"a window ({window}) must be at least 1, and needs causal")


def attend(q: Tensor, keys: Tensor, values: Tensor, window: int | None, causal: bool) -> Tensor:
    """Attention with softmax scale 1; scores, softmax and sums in fp32.

    Args:
        q: [T, H, hd]; H is a multiple of Hkv. Any strides but a contiguous last axis.
        keys, values: [Hkv, S, hd], likewise; not copied.
        window: with `causal`, how many keys a query sees, itself counted; None: all before it.
        causal: the last T keys are the queries' own, and query p sees keys up to p
            (p-window+1..p); False: every query sees all keys.

    Returns:
        [T, H, hd], contiguous, in the dtype of `q`.

    Raises:
        InvalidRequest: see `check`.
    """
    check(q, keys, values, window, causal)
    length, heads, width = q.shape
    kv_heads, total, _ = keys.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not length:
        return out
    group = heads // kv_heads
    size = block_sizes(length * group, width, q.dtype)
    tiles = triton.cdiv(length * group, size.rows)
    # Keys that the widest block of rows can reach, its first block cut at a border.
    reach = total
    if window is not None:
        reach = min(total, window + triton.cdiv(size.rows, group) + size.keys)
    blocks = triton.cdiv(reach, size.keys)
    spans = count_spans(tiles * kv_heads, blocks)
    span = triton.cdiv(blocks, spans) * size.keys
    power = triton.next_power_of_2(width)
    parts, peaks, sums = out, out, out
    if spans > 1:
        parts = torch.empty(spans, *q.shape, dtype=torch.float32, device=q.device)
        peaks = parts.new_empty(spans, length, heads)
        sums = torch.empty_like(peaks)
    with torch.cuda.device_of(q):
        _attend[(tiles, kv_heads, spans)](
            q, keys, values, parts, peaks, sums,
            q.stride(0), q.stride(1), keys.stride(0), keys.stride(1),
            values.stride(0), values.stride(1), length, total, window or 0, span,
            HEADS=heads, GROUP=group, WIDTH=width, POWER=power,
            CAUSAL=causal, WINDOWED=window is not None, SPLIT=spans > 1,
            ROWS=size.rows, BLOCK=size.keys, num_warps=size.warps, num_stages=size.stages,
            **FUSED,
        )  # fmt: skip
        if spans > 1:
            _join[(length * heads,)](
                parts, peaks, sums, out, length * heads, spans, WIDTH=width, POWER=power, **FUSED
            )
    return out
