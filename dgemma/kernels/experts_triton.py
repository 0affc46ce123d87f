"""The mixture of experts on CUDA: grouped matrix products in Triton.

The result of `experts.experts_sparse` within rounding, without a loop over experts and without a
value that the host waits for. Assignments (a row and one of its experts) are sorted by expert once;
a plan cuts them into blocks of rows of one expert each:

    plan    sorted assignments  -> expert, first and end of every block
    up      gathered rows of x  -> gelu_tanh(gate) * up, in sorted order
    down    those               -> weighted product, at [row, rank of the expert in that row]
    add     the K of a row      -> their sum in ascending expert order, without atomics

Knows the operation's shapes and dtypes, nothing about routing, layers or configs, and has no
backward. Two calls with the same rows give the same bits; another number of rows may pick other
block sizes, so across batches a row is the same within rounding only. Needs the `triton` package;
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
from dgemma.kernels.launch import FUSED, launch_largest

PLAN_BLOCKS = 64
"""Blocks that one program of the plan places."""

ADD_COLUMNS = 1024
"""Columns that one program of the sum adds."""


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """Block sizes of the two products.

    Attributes:
        rows: assignments of one expert in a block.
        columns: output columns of a block; the first product has as many gates and ups each.
        inner: length of one step along the summed axis.
        warps, stages: as in Triton.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


TILES_16_BIT = (
    ExpertTiles(128, 64, 64, 8, 3),
    ExpertTiles(64, 64, 64, 4, 4),
    ExpertTiles(32, 64, 64, 4, 4),
    ExpertTiles(16, 64, 64, 4, 4),
    ExpertTiles(16, 32, 32, 4, 2),
)
TILES_32_BIT = (
    ExpertTiles(32, 32, 32, 4, 2),
    ExpertTiles(16, 32, 32, 4, 2),
    ExpertTiles(16, 32, 16, 4, 1),
)
BARRIER_BYTES = 64
MOST_MEANS = (96, 32, 8)
"""Above so many rows of an expert in the mean, the first, second and third of 16 bit are used."""


def candidates(assignments: int, experts: int, dtype: torch.dtype) -> tuple[ExpertTiles, ...]:
    """Block sizes by the mean number of rows of an expert, largest first: a canvas has 16, a
    prefill hundreds. The last is for devices with little room and is never the first.

    Few rows: weights are read once from memory and the product is free, so a block should hold all
    rows of most experts. Many rows: the product is what costs.
    """
    mean = assignments / experts
    if dtype == torch.float32:
        return TILES_32_BIT[mean <= 16 :]
    return TILES_16_BIT[sum(mean <= most for most in MOST_MEANS) :]


def shared_bytes(tiles: ExpertTiles, dtype: torch.dtype) -> int:
    """Most shared memory of a block: the steps of the first product that are read ahead.

    From 64 rows on tensor cores of sm_90 and sm_100 read from shared memory, which keeps one more.
    """
    read = (tiles.rows + 2 * tiles.columns) * tiles.inner * dtype.itemsize
    steps = tiles.stages if tiles.rows >= 64 else max(1, tiles.stages - 1)
    return steps * read + BARRIER_BYTES


@triton.jit(do_not_specialize=["total"])
def _plan(
    starts: tl.tensor,  # [E + 1] first sorted assignment of every expert, then their number
    plan: tl.tensor,  # int32 [3, total]: expert (-1: none), first, end
    total: tl.int32,  # most blocks there can be
    EXPERTS: tl.constexpr,
    POWER: tl.constexpr,  # of two, at least EXPERTS
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Which rows of which expert each block holds."""
    expert = tl.arange(0, POWER)
    real = expert < EXPERTS
    first = tl.load(starts + expert, mask=real, other=0).to(tl.int32)
    end = tl.load(starts + expert + 1, mask=real, other=0).to(tl.int32)
    need = (end - first + ROWS - 1) // ROWS
    last = tl.cumsum(need, 0)  # blocks of this expert and of all before it
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    own = (block[:, None] < last[None, :]) & (block[:, None] >= (last - need)[None, :])
    low = first[None, :] + (block[:, None] - (last - need)[None, :]) * ROWS
    # One expert at most owns a block: the maximum picks its value.
    found = tl.max(tl.where(own, expert[None, :], -1), 1)
    there = block < total
    tl.store(plan + block, found, mask=there)
    tl.store(plan + total + block, tl.max(tl.where(own, low, 0), 1), mask=there)
    high = tl.minimum(low + ROWS, end[None, :])
    tl.store(plan + 2 * total + block, tl.max(tl.where(own, high, 0), 1), mask=there)


@triton.jit
def gelu_tanh(x: tl.tensor) -> tl.tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), by 0.5 (1 + tanh z) = sigmoid(2 z)."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit(do_not_specialize=["total"])
def _up(
    x: tl.tensor,  # [N, D]
    gate_up: tl.tensor,  # [E, 2F, D]
    act: tl.tensor,  # [A, F], sorted by expert
    order: tl.tensor,  # int64 [A] assignments sorted by expert
    plan: tl.tensor,
    total: tl.int32,
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Gate and up products of one block of rows, side by side over the same x."""
    block = tl.program_id(0)
    expert = tl.load(plan + block).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(plan + total + block) + tl.arange(0, ROWS)
    held = place < tl.load(plan + 2 * total + block)
    row = tl.load(order + place, mask=held, other=0) // TOP
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < INNER
    step = tl.arange(0, STEP)
    x_at = x + row[:, None] * WIDTH + step[None, :]
    gate_at = gate_up + (expert * 2 * INNER + column[None, :]) * WIDTH + step[:, None]
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for low in range(0, WIDTH, STEP):
        more = low + step < WIDTH
        part = tl.load(x_at + low, mask=held[:, None] & more[None, :], other=0.0)
        use = more[:, None] & inside[None, :]
        w = tl.load(gate_at + low, mask=use, other=0.0)
        gate = tl.dot(part, w, gate, input_precision="ieee")
        w = tl.load(gate_at + INNER * WIDTH + low, mask=use, other=0.0)
        up = tl.dot(part, w, up, input_precision="ieee")
    value = (gelu_tanh(gate) * up).to(act.dtype.element_ty)
    at = act + place.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(at, value, mask=held[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["total"])
def _down(
    act: tl.tensor,  # [A, F], sorted by expert
    down: tl.tensor,  # [E, D, F]
    weight: tl.tensor,  # [N, K]
    index: tl.tensor,  # [N, K]
    parts: tl.tensor,  # [N, K, D], K in ascending order of the experts
    order: tl.tensor,
    plan: tl.tensor,
    total: tl.int32,
    TOP: tl.constexpr,
    TOP_POWER: tl.constexpr,  # of two, at least TOP
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Down products of one block of rows times their routing weights."""
    block = tl.program_id(0)
    expert = tl.load(plan + block).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(plan + total + block) + tl.arange(0, ROWS)
    held = place < tl.load(plan + 2 * total + block)
    slot = tl.load(order + place, mask=held, other=0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    step = tl.arange(0, STEP)
    act_at = act + place.to(tl.int64)[:, None] * INNER + step[None, :]
    down_at = down + (expert * WIDTH + column[None, :]) * INNER + step[:, None]
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for low in range(0, INNER, STEP):
        more = low + step < INNER
        part = tl.load(act_at + low, mask=held[:, None] & more[None, :], other=0.0)
        w = tl.load(down_at + low, mask=more[:, None] & inside[None, :], other=0.0)
        y = tl.dot(part, w, y, input_precision="ieee")
    store_part(y, weight, index, parts, slot, expert, held, column, inside, TOP, TOP_POWER, WIDTH)


@triton.jit
def store_part(
    y: tl.tensor,  # [ROWS, COLUMNS] down products of one expert
    weight: tl.tensor,
    index: tl.tensor,
    parts: tl.tensor,
    slot: tl.tensor,  # int64 [ROWS] assignments
    expert: tl.int64,
    held: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    TOP: tl.constexpr,
    TOP_POWER: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Times the routing weights, at the rank of the expert in its row."""
    y *= tl.load(weight + slot, mask=held, other=0.0).to(tl.float32)[:, None]
    # How many of the row's assignments come before this one: lower experts, then lower places.
    mine = slot % TOP
    other = tl.arange(0, TOP_POWER)
    others = tl.load(
        index + (slot - mine)[:, None] + other[None, :],
        mask=(other < TOP)[None, :],
        other=expert + 1,
    )
    before = (others < expert) | ((others == expert) & (other[None, :] < mine[:, None]))
    rank = tl.sum(before.to(tl.int64), 1)
    at = parts + (slot - mine + rank)[:, None] * WIDTH + column[None, :]
    tl.store(at, y.to(parts.dtype.element_ty), mask=held[:, None] & inside[None, :])


@triton.jit
def _add(
    parts: tl.tensor,  # [N, K, D]
    out: tl.tensor,  # [N, D]
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sum of a row's parts, in fp32, in order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    value = tl.zeros((COLUMNS,), tl.float32)
    for k in range(TOP):
        value += tl.load(parts + (row * TOP + k) * WIDTH + column, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(out + row * WIDTH + column, value.to(out.dtype.element_ty), mask=inside)


def most_blocks(assignments: int, experts: int, rows: int) -> int:
    """The most blocks of `rows` that any routing of `assignments` can need."""
    begun = min(assignments, experts)
    return (assignments - begun) // rows + begun


def plan_blocks(index: Tensor, experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Sort assignments by expert and cut them into blocks; the host waits for nothing.

    Args:
        index: int64 [N, K] expert ids.
        experts: E; ids are below it.
        rows: most assignments of a block.

    Returns:
        int64 [N * K] assignments (row * K + place) grouped by expert, ascending within one, and
        int32 [3, B]: expert (-1: an empty block at the end), first and end of each block.
    """
    grouped, order = index.flatten().sort(stable=True)
    ids = torch.arange(experts + 1, device=index.device)
    starts = torch.searchsorted(grouped, ids)
    total = most_blocks(grouped.numel(), experts, rows)
    plan = torch.empty(3, total, dtype=torch.int32, device=index.device)
    power = triton.next_power_of_2(experts)
    _plan[(triton.cdiv(total, PLAN_BLOCKS),)](
        starts, plan, total, EXPERTS=experts, POWER=power, ROWS=rows, BLOCKS=PLAN_BLOCKS, **FUSED
    )
    return order, plan


def check(x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> None:
    """Refuse what the kernels would compute wrongly or without a gradient.

    Raises:
        InvalidRequest: gradients are asked for, dtypes differ, or shapes do not fit.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, gate_up, down)):
        raise InvalidRequest("the Triton experts have no backward: use the sparse or dense ones")
    if not x.dtype == gate_up.dtype == down.dtype:
        raise InvalidRequest(f"dtypes differ: {x.dtype}, {gate_up.dtype}, {down.dtype}")
    check_shapes(x, index, weight, tuple(gate_up.shape), tuple(down.shape))


def check_shapes(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: tuple[int, ...], down: tuple[int, ...]
) -> None:
    """Refuse rows, choices and matrices of sizes that do not belong together.

    Raises:
        InvalidRequest: see above.
    """
    experts, hidden, inner = down
    fits = gate_up == (experts, 2 * inner, hidden) and weight.shape == index.shape
    if not fits or x.shape != (index.shape[0], hidden):
        raise InvalidRequest(
            f"shapes do not fit: x {tuple(x.shape)}, index {tuple(index.shape)}, "
            f"weight {tuple(weight.shape)}, gate_up {gate_up}, down {down}"
        )


def experts_triton(
    x: Tensor,  # [N, D]
    index: Tensor,  # [N, K] int64
    weight: Tensor,  # [N, K] fp32
    gate_up: Tensor,  # [E, 2F, D], gate rows first
    down: Tensor,  # [E, D, F]
) -> Tensor:
    """Sum over the routed experts of weight * down(gelu_tanh(gate(x)) * up(x)): [N, D].

    Products are summed in fp32; the activation and each weighted product are rounded once to the
    dtype of `x`, their sum runs in fp32. Scratch: N * K * (D + F) values.

    Raises:
        InvalidRequest: gradients are asked for, dtypes differ, or shapes do not fit.
        DeviceError: the device has no room for the smallest blocks.
    """
    check(x, index, weight, gate_up, down)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.shape[0]:
        return out
    x, index, weight = x.contiguous(), index.contiguous(), weight.contiguous()
    gate_up, down = gate_up.contiguous(), down.contiguous()  # copies nothing for real weights
    with torch.cuda.device_of(x):
        launch_largest(
            f"experts in {x.dtype}",
            candidates(index.numel(), down.shape[0], x.dtype),
            lambda tiles: shared_bytes(tiles, x.dtype),
            lambda tiles: _run(x, index, weight, gate_up, down, out, tiles),
        )
    return out


def _run(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    out: Tensor,
    size: ExpertTiles,
) -> None:
    """Plan, up, down, add; every tensor contiguous."""
    experts, width, inner = down.shape
    top, count = index.shape[1], index.numel()
    shape = {"TOP": top, "WIDTH": width, "INNER": inner, "ROWS": size.rows}
    tile = {"COLUMNS": size.columns, "STEP": size.inner}
    options = {"num_warps": size.warps, "num_stages": size.stages, **FUSED}
    order, plan = plan_blocks(index, experts, size.rows)
    total = plan.shape[1]
    # Axis 0 runs fastest: blocks of one expert read the same weights at the same time.
    act = x.new_empty(count, inner)
    grid = (total, triton.cdiv(inner, size.columns))
    _up[grid](x, gate_up, act, order, plan, total, **shape, **tile, **options)
    parts = x.new_empty(count, width)
    grid = (total, triton.cdiv(width, size.columns))
    power = {"TOP_POWER": triton.next_power_of_2(top)}
    _down[grid](
        act, down, weight, index, parts, order, plan, total, **shape, **power, **tile, **options
    )
    add_parts(parts, out, top)


def add_parts(parts: Tensor, out: Tensor, top: int) -> None:
    """Sum of each row's `top` parts, [N * K, D] -> [N, D]."""
    rows, width = out.shape
    grid = (rows, triton.cdiv(width, ADD_COLUMNS))
    _add[grid](parts, out, TOP=top, WIDTH=width, COLUMNS=ADD_COLUMNS, **FUSED)
