"""Attention of many requests at once on CUDA: flash attention in Triton over keys in their pages.

It takes head size 512, which torch's flash kernel does not, and reads pages where they lie: no
copy, no mask tensor, no matrix of scores. The query heads that share a key head are rows of one
block, so a key is read once for all of them. Where rows are few for the GPU, the keys are cut into
spans that run side by side and are joined by a second kernel. Softmax scale 1.

Two calls of the same shapes give the same bits. There is no backward. Needs the `triton` package;
with TRITON_INTERPRET=1 set before this module is imported it runs on the CPU, for tests, in any
dtype but bf16, whose `dot` is wrong there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention_paged import PagedSegments
from dgemma.kernels.e4m3 import E4M3, codes
from dgemma.kernels.launch import FUSED, launch_largest, limits

MOST_SPANS = 32
"""Most spans of keys; each costs a write and a read of the output in fp32."""


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Block sizes: folded query rows, keys (a divisor of a page), warps and stages as in Triton."""

    rows: int
    keys: int
    warps: int
    stages: int


FEW_ROWS = (
    AttentionTiles(16, 64, 4, 2),
    AttentionTiles(16, 32, 4, 2),
    AttentionTiles(16, 16, 4, 1),
)
"""For single tokens; with heads of more than 256 numbers from the second on, in fp32 the last."""

FEW_PACKED = (AttentionTiles(16, 32, 8, 2), AttentionTiles(16, 16, 4, 1))
"""The same for wide heads in e4m3: with four warps the numbers they become spill."""

NARROW = (
    AttentionTiles(64, 64, 8, 2),
    AttentionTiles(64, 32, 8, 2),
    AttentionTiles(32, 32, 4, 2),
    AttentionTiles(16, 16, 4, 1),
)
"""For heads of at most 256 numbers."""

WIDE = (
    AttentionTiles(64, 32, 8, 2),
    AttentionTiles(32, 32, 8, 2),
    AttentionTiles(16, 32, 4, 2),
    AttentionTiles(16, 16, 4, 1),
)
"""For wider heads. The first needs the tensor memory of sm_100: elsewhere its sums of 64 rows do
not fit the registers, and 72 to 144 bytes a thread spill. So they do for keys in e4m3."""

SHARED_PRODUCTS = (90, 100)
"""Capabilities whose tensor cores read operands of 64 rows from shared memory."""

BARRIER_BYTES = 1024


def candidates(
    rows: int, head_dim: int, dtype: torch.dtype, capability: int, packed: bool
) -> tuple[AttentionTiles, ...]:
    """Block sizes for `rows` folded rows (queries x heads of a group) a segment, largest first.

    `packed`: keys and values are in e4m3.
    """
    if dtype == torch.float32:
        return FEW_ROWS[-1:]
    if rows <= 16:
        return FEW_PACKED if packed and head_dim > 256 else FEW_ROWS[head_dim > 256 :]
    if head_dim <= 256:
        return NARROW
    return WIDE[capability != 100 or packed :]


def shared_bytes(tiles: AttentionTiles, head_dim: int, dtype: torch.dtype, capability: int) -> int:
    """Most shared memory of a block: keys and values that are read ahead, and weights.

    The queries are there too where tensor cores read them, else half of them while they go to
    registers, if they do not fit the place of a block of keys.
    """
    power: int = triton.next_power_of_2(head_dim)
    blocks, queries = 2 * tiles.stages, 0
    if tiles.rows >= 64 and capability in SHARED_PRODUCTS:
        queries = tiles.rows * power
    else:
        blocks -= tiles.stages > 1
        queries = tiles.rows * power // 2 * (tiles.rows > tiles.keys)
    numbers: int = queries + blocks * tiles.keys * power + tiles.rows * tiles.keys
    return numbers * dtype.itemsize + BARRIER_BYTES * (capability in SHARED_PRODUCTS)


def count_spans(programs: int, blocks: int, processors: int) -> int:
    """Into how many spans to cut `blocks` blocks of keys: enough programs, 4 blocks at least."""
    return max(1, min(processors // programs, blocks // 4, MOST_SPANS))


@triton.jit
def _seen(begin, before, ordered, count, token, window, WINDOWED: tl.constexpr):
    """The first and the last key of the request that each row sees, both int32 like `token`."""
    place = before + token  # of the query among the keys
    last = tl.where(ordered, place, before + count - 1)
    since = token * 0 + begin
    if WINDOWED:
        since = tl.where(ordered, tl.maximum(place - window + 1, 0), since)
    return since, last


@triton.jit
def _number(code, DTYPE: tl.constexpr):
    """Codes of e4m3 as numbers, on any GPU: the bits go to those of fp16, which counts exponents
    from 8 less. Every step is exact."""
    bits = code.to(tl.uint16)
    half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True) * 256.0
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), half).to(DTYPE)


@triton.jit(do_not_specialize=["rows", "tiles", "blocks", "window", "span"])
def _attend_pages(
    q, keys, values,  # [N, H, hd], [Hkv, slots, hd] twice; these may be codes of e4m3
    out,  # [N, H, hd]; with spans fp32 [spans, N, H, hd], not yet divided
    peaks, sums,  # fp32 [spans, N, H]: base-2 maximum and sum of the weights; with spans only
    first, length, stored, low, causal, table,  # int64 [R] and [R, blocks], see `PagedSegments`
    q_token, q_head, k_head, k_slot,  # strides
    rows, tiles, blocks, window, span,  # N; row tiles of a segment; keys of a span
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, POWER: tl.constexpr,
    WINDOWED: tl.constexpr, SPLIT: tl.constexpr, PACKED: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of folded rows of one key head of one segment over one span of its keys."""
    segment = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    count = tl.load(length + segment).to(tl.int32)
    if tl.program_id(0) % tiles * ROWS >= count * GROUP:
        return
    held, token = row < count * GROUP, tl.minimum(row // GROUP, count - 1)
    head = tl.program_id(1) * GROUP + row % GROUP
    column, inside = tl.arange(0, POWER), tl.arange(0, POWER) < WIDTH
    begin, before = tl.load(low + segment).to(tl.int32), tl.load(stored + segment).to(tl.int32)
    ordered = tl.load(causal + segment) != 0
    since, last = _seen(begin, before, ordered, count, token, window, WINDOWED)
    at = tl.load(first + segment) + token
    q_at = q + at[:, None] * q_token + head[:, None] * q_head + column[None, :]
    query = tl.load(q_at, mask=held[:, None] & inside[None, :], other=0.0)
    start_of_table = begin // PAGE * PAGE
    start, high = tl.min(since, 0) // BLOCK * BLOCK, tl.max(last, 0) + 1
    if SPLIT:
        start += tl.program_id(2) * span
        high = tl.minimum(high, start + span)
    peak, weight = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, POWER), tl.float32)
    k_at = keys + tl.program_id(1).to(tl.int64) * k_head + column[:, None]
    v_at = values + tl.program_id(1).to(tl.int64) * k_head + column[None, :]
    for low_key in range(start, high, BLOCK):
        key = low_key + tl.arange(0, BLOCK)
        there = key < high
        page = tl.load(table + segment * blocks + (low_key - start_of_table) // PAGE)
        slot = page * PAGE + low_key % PAGE + tl.arange(0, BLOCK)
        k = tl.load(k_at + slot[None, :] * k_slot, mask=there[None, :] & inside[:, None], other=0)
        k = _number(k, query.dtype) if PACKED else k
        scores = tl.dot(query, k, input_precision="ieee") * 1.4426950408889634
        seen = there[None, :] & (key[None, :] <= last[:, None]) & (key[None, :] >= since[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        best = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(best == float("-inf"), 0.0, best)  # no key seen yet: all weights zero
        p, fade = tl.exp2(scores - safe[:, None]), tl.exp2(peak - safe)
        peak, weight = best, weight * fade + tl.sum(p, 1)
        v = tl.load(v_at + slot[:, None] * k_slot, mask=there[:, None] & inside[None, :], other=0)
        v = _number(v, query.dtype) if PACKED else v
        mixed = tl.dot(p.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
    to = at * HEADS + head
    if SPLIT:
        to += tl.program_id(2).to(tl.int64) * rows * HEADS
        tl.store(peaks + to, peak, mask=held)
        tl.store(sums + to, weight, mask=held)
    else:
        mixed = mixed / weight[:, None]
    o_at = out + to[:, None] * WIDTH + column[None, :]
    tl.store(o_at, mixed.to(out.dtype.element_ty), mask=held[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "spans"])
def _join_spans(
    parts, peaks, sums, out,  # [spans, N*H, hd], [spans, N*H] twice, [N*H, hd]
    rows, spans,  # rows: N*H
    WIDTH: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """One row: its spans, weighed by what each saw. A row of no segment saw nothing: zero."""
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
        own = tl.load(sums + span * rows + row)
        weight += fade * own
        at = parts + (span * rows + row) * WIDTH + column
        saw = tl.zeros((POWER,), tl.float32) + own > 0
        mixed += fade * tl.load(at, mask=inside & saw, other=0.0)
    value = (mixed / tl.where(weight > 0, weight, 1.0)).to(out.dtype.element_ty)
    tl.store(out + row * WIDTH + column, value, mask=inside)


def check(q: Tensor, buffer: Tensor, at: PagedSegments) -> None:
    """Refuse what the kernel would compute wrongly or without a gradient.

    Raises:
        InvalidRequest: gradients are asked for; dtypes or shapes do not fit; a head is not
            contiguous; a page that no block divides; a window below 1.
    """
    if torch.is_grad_enabled() and (q.requires_grad or buffer.requires_grad):
        raise InvalidRequest("the Triton attention has no backward: use the reference path")
    if buffer.dtype not in (q.dtype, E4M3):
        raise InvalidRequest(f"dtypes differ: {q.dtype}, {buffer.dtype}")
    if q.shape[2] != buffer.shape[3] or q.shape[1] % buffer.shape[1]:
        raise InvalidRequest(f"shapes do not fit: {tuple(q.shape)}, {tuple(buffer.shape)}")
    if q.stride(2) != 1 or buffer.stride(3) != 1:
        raise InvalidRequest("the last axis of queries, keys and values must be contiguous")
    if at.page % 64 or (at.window is not None and at.window < 1):
        raise InvalidRequest(f"pages of {at.page} keys, window {at.window}: 64 n and at least 1")


def attend_pages(q: Tensor, buffer: Tensor, at: PagedSegments) -> Tensor:
    """Attention with softmax scale 1; scores, softmax and sums in fp32.

    Args:
        q: [N, H, hd]; H is a multiple of Hkv. Any strides but a contiguous last axis.
        buffer: [2, Hkv, slots, hd], in the dtype of `q` or e4m3; keys and values of the rows
            themselves are there already.
        at: see `PagedSegments`.

    Returns:
        [N, H, hd], contiguous, in the dtype of `q`; zero for rows that only fill up.

    Raises:
        InvalidRequest: see `check`.
        DeviceError: the device has no room for the smallest blocks.
    """
    check(q, buffer, at)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    group, width = q.shape[1] // buffer.shape[1], q.shape[2]
    with torch.cuda.device_of(q):
        capability = limits().capability
        launch_largest(
            f"attention, heads of {width} in {q.dtype}",
            candidates(at.longest * group, width, q.dtype, capability, buffer.dtype == E4M3),
            lambda tiles: shared_bytes(tiles, width, q.dtype, capability),
            lambda tiles: _run(q, buffer, at, out, tiles),
        )
    return out


def _run(q: Tensor, buffer: Tensor, at: PagedSegments, out: Tensor, size: AttentionTiles) -> None:
    """Attend, and join the spans."""
    rows, heads, width = q.shape
    kv_heads, (count, blocks) = buffer.shape[1], at.table.shape
    group = heads // kv_heads
    tiles = triton.cdiv(at.longest * group, size.rows)
    # Keys that the widest block of rows can reach, its first block cut at a border.
    reach = triton.cdiv(at.reach, size.keys)
    spans = count_spans(count * tiles * kv_heads, reach, limits().processors)
    span = triton.cdiv(reach, spans) * size.keys
    power = triton.next_power_of_2(width)
    parts, peaks, sums = out, out, out
    if spans > 1:
        parts = torch.empty(spans, *q.shape, dtype=torch.float32, device=q.device)
        peaks, sums = parts.new_zeros(2, spans, rows, heads)
    keys, values = codes(buffer)
    _attend_pages[(count * tiles, kv_heads, spans)](
        q, keys, values, parts, peaks, sums,
        at.first, at.length, at.stored, at.low, at.causal, at.table,
        q.stride(0), q.stride(1), buffer.stride(1), buffer.stride(2),
        rows, tiles, blocks, at.window or 0, span,
        HEADS=heads, GROUP=group, WIDTH=width, POWER=power,
        WINDOWED=at.window is not None, SPLIT=spans > 1, PACKED=buffer.dtype == E4M3, PAGE=at.page,
        ROWS=size.rows, BLOCK=size.keys, num_warps=size.warps, num_stages=size.stages, **FUSED,
    )  # fmt: skip
    if spans > 1:
        _join_spans[(rows * heads,)](
            parts, peaks, sums, out, rows * heads, spans, WIDTH=width, POWER=power, **FUSED
        )
