"""The mixture of experts: gated products of each row with its top-k experts.

Four ways that give the same numbers within rounding. `experts_sparse` is the reference: expert by
expert, routed rows only. `experts_grouped` sorts the rows by expert once and does everything
but the products for all experts together; it is for 16 bit on a CPU, `experts_triton` for CUDA;
neither has a backward. "prepacked" is the grouped way on copies of the matrices, see `Prepacked`.
`experts_dense` computes every expert on every row and weighs the unrouted ones with zero, which
wins where experts are tiny. Knows nothing about routing, layers or configs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.linear import rows_linear
from dgemma.kernels.workspace import WORKSPACE

ExpertsKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Rows x [N, D], their experts: index int64 [N, K] and weight fp32 [N, K], the matrices gate_up
[E, 2F, D], gate rows first, and down [E, D, F] -> [N, D]."""

DENSE_LIMIT = 1024
"""Largest total width (experts x inner width) at which computing every expert is cheaper."""


ROOM_FOR_PREPACKED = 3.0
"""Free bytes for each number of a network from which experts are packed again: 2 for the copy."""


def choose_experts(
    num_experts: int, inner: int, dtype: torch.dtype, device: torch.device, grad: bool = False,
    room: float = 0.0,
) -> tuple[str, str]:  # fmt: skip
    """The name of the faster way for these sizes, and the reason as text.

    "triton" is a kernel of `cuda_kernels`, the others are in `EXPERTS`.

    Args:
        num_experts, inner: sizes of the layer.
        dtype, device: of weights and rows.
        grad: whether gradients are wanted; the fast ways for large layers have no backward.
        room: free bytes for each number of the network.
    """
    width = num_experts * inner
    if width <= DENSE_LIMIT:
        return "dense", f"{num_experts} experts x {inner} = {width} <= {DENSE_LIMIT} columns"
    why = f"{num_experts} experts x {inner} = {width} > {DENSE_LIMIT} columns"
    if grad:
        return "sparse", f"{why}; gradients are wanted"
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton", f"{why}; {device}"
    if dtype == torch.float32:
        return "sparse", f"{why}; fp32 keeps every row apart, bit for bit"
    if dtype != torch.bfloat16 or not _packs_bf16(device):
        return "grouped", f"{why}; 16 bit"
    free = f"{room:.1f} bytes are free for each number, a copy packed for oneDNN"
    if room < ROOM_FOR_PREPACKED:
        return "grouped", f"{why}; bf16; {free} wants {ROOM_FOR_PREPACKED}"
    return "prepacked", f"{why}; bf16; {free} is faster"


def _packs_bf16(device: torch.device) -> bool:
    """Whether oneDNN has packed weights in bf16 here."""
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cpu" and mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Prepacked:
    """A copy of a stack of bf16 matrices [E, R, K] in the order in which oneDNN reads them."""

    def __init__(self, stack: Tensor) -> None:
        self.shape = stack.shape
        pack = torch.ops.mkldnn._reorder_linear_weight
        self.matrices = [pack(matrix.contiguous(), None) for matrix in stack]

    def __getitem__(self, expert: int) -> Tensor:
        matrix: Tensor = self.matrices[expert]
        return matrix


def experts_sparse(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Sum over the routed experts of weight * down(gelu_tanh(gate(x)) * up(x)): [N, D].

    The sum runs over experts in ascending order in the dtype of `x`, as in `transformers`.
    """
    out = torch.zeros_like(x)
    top_k = index.shape[1]
    order = index.flatten().argsort(stable=True)  # assignments, grouped by expert
    counts = torch.bincount(index.flatten(), minlength=gate_up.shape[0]).tolist()
    start = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        slots = order[start : start + count]
        start += count
        rows = slots // top_k
        gate, up = rows_linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
        y = rows_linear(F.gelu(gate, approximate="tanh") * up, down[expert])
        y = y * weight.flatten()[slots, None]
        out.index_add_(0, rows, y.to(out.dtype))
    return out


def experts_grouped(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The same sum with one sort, one activation and one weighted sum for all experts: [N, D].

    The K results of a row are added in fp32 and rounded once. How many rows an expert has may
    change the rounding of each, so this does not suit fp32.
    """
    rows, top_k = index.shape
    order = index.flatten().argsort(stable=True)  # assignments, grouped by expert
    counts = torch.bincount(index.flatten(), minlength=gate_up.shape[0]).tolist()
    sorted_rows = WORKSPACE.take("expert rows", len(order), x.shape[1], x)
    torch.index_select(x, 0, order // top_k, out=sorted_rows)
    inner = WORKSPACE.take("expert inner", len(order), gate_up.shape[1], x)
    ends = list(accumulate(counts))
    used = [
        (e, slice(end - n, end)) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n
    ]
    for expert, here in used:
        _multiply(sorted_rows[here], gate_up[expert], inner[here])
    gate, up = inner.chunk(2, dim=-1)
    act = F.gelu(gate, approximate="tanh").mul_(up)
    out = sorted_rows  # its memory is free now
    for expert, here in used:
        _multiply(act[here], down[expert], out[here])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=x.device)
    summed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    one = WORKSPACE.take("expert result", rows, x.shape[1], x)
    for k, slots in enumerate(place.view(rows, top_k).unbind(1)):
        summed.addcmul_(torch.index_select(out, 0, slots, out=one), weight[:, k, None])
    return summed.to(x.dtype)


def _multiply(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """`rows @ matrix.T` into `out`."""
    if matrix.is_mkldnn:
        out.copy_(torch.ops.mkldnn._linear_pointwise(rows, matrix, None, "none", [], ""))
    else:
        torch.mm(rows, matrix.T, out=out)


def experts_dense(
    x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The same sum with every expert computed and the unrouted ones weighed with zero: [N, D]."""
    experts, double, hidden = gate_up.shape
    mix = torch.full((x.shape[0], experts), 0.0, dtype=weight.dtype, device=x.device)
    mix = mix.scatter(1, index, weight)
    inner = rows_linear(x, gate_up.reshape(experts * double, hidden))
    gate, up = inner.view(-1, experts, double).chunk(2, dim=-1)
    act = F.gelu(gate, approximate="tanh") * up * mix[:, :, None].to(x.dtype)
    wide = down.transpose(0, 1).reshape(hidden, -1)  # [D, E*F]
    return rows_linear(act.reshape(x.shape[0], -1), wide)


EXPERTS: dict[str, ExpertsKernel] = {
    "dense": experts_dense,
    "sparse": experts_sparse,
    "grouped": experts_grouped,
    "prepacked": experts_grouped,
}
