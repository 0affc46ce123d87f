"""Products with packed weights on CUDA: the mixture of experts, and a plain one, in Triton.

The plan, the sum and the numbers are those of `experts_triton`; weights become numbers of the dtype
of x in registers, tile by tile, as `packed_triton` says. Nothing is repacked and nothing is
unpacked in memory. Rows of x are put in the order of the codes where a byte holds two neighbours.
Backward, interpreter and repeated bits: as in `experts_triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.experts_triton import (
    MOST_MEANS,
    ExpertTiles,
    add_parts,
    check_shapes,
    gelu_tanh,
    plan_blocks,
    store_part,
)
from dgemma.kernels.launch import FUSED, launch_largest
from dgemma.kernels.packed_matrix import STEP, PackedMatrix, kernels_decode, pairs_apart
from dgemma.kernels.packed_triton import columns, decode

TILES = (
    ExpertTiles(128, 64, STEP, 8, 3),
    ExpertTiles(64, 64, STEP, 4, 3),
    ExpertTiles(32, 64, STEP, 4, 3),
    ExpertTiles(16, 64, STEP, 4, 3),
    ExpertTiles(16, 32, STEP, 4, 2),
)
TILES_32_BIT = (ExpertTiles(32, 32, STEP, 4, 2), ExpertTiles(16, 32, STEP, 4, 1))
RESERVED_BYTES = 256


def candidates(rows: float, dtype: torch.dtype) -> tuple[ExpertTiles, ...]:
    """Block sizes by the rows of a matrix in the mean, largest first.

    Every block of rows unpacks its weights again, so a block should hold all rows of a matrix.
    """
    if dtype == torch.float32:
        return TILES_32_BIT[rows <= 16 :]
    return TILES[sum(rows <= most for most in MOST_MEANS) :]


def shared_bytes(tiles: ExpertTiles, dtype: torch.dtype, matrices: int = 2) -> int:
    """Most shared memory of a block: steps of x and codes that are read ahead, and numbers.

    Args:
        tiles: block sizes.
        dtype: of x and of the numbers.
        matrices: that are unpacked side by side.
    """
    numbers = matrices * tiles.columns * tiles.inner * dtype.itemsize
    read = tiles.rows * tiles.inner * dtype.itemsize + matrices * tiles.columns * tiles.inner
    return tiles.stages * read + numbers + RESERVED_BYTES


@triton.jit(do_not_specialize=["total"])
def _packed_up(
    x,  # [N, D], in the order of the codes
    codes, scale, extra,  # of [E, 2F, D]
    act,  # [A, F], sorted by expert, in the order of the next codes
    order, plan, total,  # as in `experts_triton`
    TOP: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr, NEXT_HALF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gate and up products of one block of rows."""
    block = tl.program_id(0)
    expert = tl.load(plan + block).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(plan + total + block) + tl.arange(0, ROWS)
    held = place < tl.load(plan + 2 * total + block)
    row = tl.load(order + place, mask=held, other=0) // TOP
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < INNER
    matrix = expert * 2 * INNER + column
    at = x + row[:, None] * WIDTH
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for low in range(0, WIDTH if HALF == 0 else WIDTH // 2, LANES):
        first, second, there = columns(low, WIDTH, HALF, LANES)
        use = held[:, None] & there[None, :]
        a = tl.load(at + first[None, :], mask=use, other=0.0)
        g, g_high = decode(codes, scale, extra, matrix, inside, low,
                           KIND, GROUP, SCALE, EXTRA, OFFSET, WIDTH, LANES)  # fmt: skip
        u, u_high = decode(codes, scale, extra, matrix + INNER, inside, low,
                           KIND, GROUP, SCALE, EXTRA, OFFSET, WIDTH, LANES)  # fmt: skip
        gate = tl.dot(a, g.to(a.dtype), gate, input_precision="ieee")
        up = tl.dot(a, u.to(a.dtype), up, input_precision="ieee")
        if HALF != 0:
            b = tl.load(at + second[None, :], mask=use, other=0.0)
            gate = tl.dot(b, g_high.to(b.dtype), gate, input_precision="ieee")
            up = tl.dot(b, u_high.to(b.dtype), up, input_precision="ieee")
    value = (gelu_tanh(gate) * up).to(act.dtype.element_ty)
    if NEXT_HALF == 1:
        column = column // 2 + column % 2 * (INNER // 2)
    out = act + place.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(out, value, mask=held[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["total"])
def _packed_down(
    act,  # [A, F], sorted by expert, in the order of the codes
    codes, scale, extra,  # of [E, D, F]
    weight, index, parts, order, plan, total,  # as in `experts_triton`
    TOP: tl.constexpr, TOP_POWER: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Down products of one block of rows times their routing weights."""
    block = tl.program_id(0)
    expert = tl.load(plan + block).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(plan + total + block) + tl.arange(0, ROWS)
    held = place < tl.load(plan + 2 * total + block)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    at = act + place.to(tl.int64)[:, None] * INNER
    y = _product(at, held, codes, scale, extra, expert * WIDTH + column, inside, INNER,
                 KIND, GROUP, SCALE, EXTRA, OFFSET, HALF, LANES, ROWS, COLUMNS)  # fmt: skip
    slot = tl.load(order + place, mask=held, other=0)
    store_part(y, weight, index, parts, slot, expert, held, column, inside, TOP, TOP_POWER, WIDTH)


@triton.jit
def _product(
    at,  # [ROWS, 1] beginnings of rows of x
    held, codes, scale, extra,
    matrix,  # int64 [COLUMNS] rows of the weight
    inside, WIDTH: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of x times rows of one packed weight: fp32 [ROWS, COLUMNS]."""
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for low in range(0, WIDTH if HALF == 0 else WIDTH // 2, LANES):
        first, second, there = columns(low, WIDTH, HALF, LANES)
        use = held[:, None] & there[None, :]
        w, w_high = decode(codes, scale, extra, matrix, inside, low,
                           KIND, GROUP, SCALE, EXTRA, OFFSET, WIDTH, LANES)  # fmt: skip
        a = tl.load(at + first[None, :], mask=use, other=0.0)
        y = tl.dot(a, w.to(a.dtype), y, input_precision="ieee")
        if HALF != 0:
            b = tl.load(at + second[None, :], mask=use, other=0.0)
            y = tl.dot(b, w_high.to(b.dtype), y, input_precision="ieee")
    return y


@triton.jit(do_not_specialize=["count"])
def _packed_linear(
    x,  # [N, K], in the order of the codes
    codes, scale, extra,  # of [R, K]
    out,  # [N, R]
    count, outputs,  # N, R
    WIDTH: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, EXTRA: tl.constexpr,
    OFFSET: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of rows and columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    held = row < count
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    at = x + row[:, None] * WIDTH
    y = _product(at, held, codes, scale, extra, column, inside, WIDTH,
                 KIND, GROUP, SCALE, EXTRA, OFFSET, HALF, LANES, ROWS, COLUMNS)  # fmt: skip
    to = out + row[:, None] * outputs + column[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=held[:, None] & inside[None, :])


def _constants(matrix: PackedMatrix) -> dict[str, Any]:
    """What a kernel is compiled for."""
    lanes = STEP // 2 if matrix.half else STEP
    return {**matrix.constants(), "HALF": matrix.half, "LANES": lanes}


def _launch(tiles: ExpertTiles) -> dict[str, Any]:
    return {"ROWS": tiles.rows, "COLUMNS": tiles.columns,
            "num_warps": tiles.warps, "num_stages": tiles.stages, **FUSED}  # fmt: skip


def _in_order(x: Tensor, matrix: PackedMatrix) -> Tensor:
    return pairs_apart(x) if matrix.half == 1 else x.contiguous()


def _check(x: Tensor, *matrices: PackedMatrix) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise InvalidRequest("the Triton kernels of packed weights have no backward")
    for matrix in matrices:
        if not kernels_decode(matrix.kind, matrix.columns, matrix.group):
            raise InvalidRequest(
                f"no kernel for {matrix.kind} with rows of {matrix.columns} in groups of "
                f"{matrix.group}; unpack the weight"
            )


def experts_packed(
    x: Tensor,  # [N, D]
    index: Tensor,  # [N, K] int64
    weight: Tensor,  # [N, K] fp32
    gate_up: PackedMatrix,  # [E, 2F, D], gate rows first
    down: PackedMatrix,  # [E, D, F]
) -> Tensor:
    """As `experts_triton`, with weights rounded once, from fp32 to the dtype of `x`: [N, D].

    Raises:
        InvalidRequest: gradients are asked for, shapes do not fit, or there is no kernel.
        DeviceError: the device has no room for the smallest blocks.
    """
    _check(x, gate_up, down)
    check_shapes(x, index, weight, gate_up.shape, down.shape)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.shape[0]:
        return out
    x, index, weight = _in_order(x, gate_up), index.contiguous(), weight.contiguous()
    with torch.cuda.device_of(x):
        launch_largest(
            f"experts of {gate_up.kind} and {down.kind} in {x.dtype}",
            candidates(index.numel() / down.shape[0], x.dtype),
            lambda tiles: shared_bytes(tiles, x.dtype),
            lambda tiles: _experts(x, index, weight, gate_up, down, out, tiles),
        )
    return out


def _experts(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: PackedMatrix, down: PackedMatrix,
    out: Tensor, tiles: ExpertTiles,
) -> None:  # fmt: skip
    """Plan, up, down, add."""
    experts, width, inner = down.shape
    top, count = index.shape[1], index.numel()
    shape = {"TOP": top, "WIDTH": width, "INNER": inner}
    order, plan = plan_blocks(index, experts, tiles.rows)
    total = plan.shape[1]
    act, options = x.new_empty(count, inner), _launch(tiles)
    _packed_up[(total, triton.cdiv(inner, tiles.columns))](
        x, *gate_up.tensors(), act, order, plan, total,
        **shape, **_constants(gate_up), NEXT_HALF=down.half, **options,
    )  # fmt: skip
    parts = x.new_empty(count, width)
    _packed_down[(total, triton.cdiv(width, tiles.columns))](
        act, *down.tensors(), weight, index, parts, order, plan, total,
        **shape, TOP_POWER=triton.next_power_of_2(top), **_constants(down), **options,
    )  # fmt: skip
    add_parts(parts, out, top)


def linear_packed(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """`x @ W.T`, with W rounded once, from fp32 to the dtype of `x`: [N, K] -> [N, R].

    Raises:
        InvalidRequest: gradients are asked for, shapes do not fit, or there is no kernel.
        DeviceError: the device has no room for the smallest blocks.
    """
    _check(x, matrix)
    if len(matrix.shape) != 2 or x.dim() != 2 or x.shape[1] != matrix.columns:
        raise InvalidRequest(f"shapes do not fit: x {tuple(x.shape)}, weight {matrix.shape}")
    rows, (outputs, width) = x.shape[0], matrix.shape
    out = x.new_empty(rows, outputs)
    if not rows:
        return out
    x = _in_order(x, matrix)

    def run(tiles: ExpertTiles) -> None:
        grid = (triton.cdiv(rows, tiles.rows), triton.cdiv(outputs, tiles.columns))
        _packed_linear[grid](
            x, *matrix.tensors(), out, rows, outputs,
            WIDTH=width, **_constants(matrix), **_launch(tiles),
        )  # fmt: skip

    with torch.cuda.device_of(x):
        launch_largest(
            f"product with {matrix.kind} in {x.dtype}",
            candidates(rows, x.dtype),
            lambda tiles: shared_bytes(tiles, x.dtype, 1),
            run,
        )
    return out
