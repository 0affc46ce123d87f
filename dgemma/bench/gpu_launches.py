"""Every launch of the Triton kernels that a network can reach, as calls without a device.

A kernel is listed by a function from (config, dtype) to calls of its own host function, with
tensors on torch's meta device that have the shapes and strides of a run. Block sizes, constants and
alignments are then those of a run, because the kernel chooses them itself. To add a kernel, write

    def mine(config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
        for rows in ROWS:  # of a forward: enough of them to reach every block size
            x = meta(rows, config.hidden_size, dtype=dtype)
            yield Reach(f"{rows} rows", partial(my_kernel, x))

and add it to `KERNELS`, the largest blocks first. `gpu_compile` runs the calls for a device; a call
for which it has no room is reported. `my_kernel` comes from `cuda_kernels`: triton is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dgemma.kernels.attention import choose_attention
from dgemma.kernels.attention_paged import PagedSegments
from dgemma.kernels.controls import Controls
from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.e4m3 import E4M3
from dgemma.kernels.experts import choose_experts
from dgemma.kernels.head import Head, choose_head
from dgemma.model.config import ModelConfig
from dgemma.model.layers import Embedding
from dgemma.types import PAGE

CUDA = torch.device("cuda")
ROWS = (4096, 1024, 256, 64, 1)
"""Rows of a forward, most first: batches of canvases, one canvas, a short one, one token."""

KEYS = (1 << 15, 1024)
"""Keys before the queries: spans run side by side, or not."""


@dataclass(frozen=True, slots=True)
class Reach:
    """A call of a kernel's host function.

    Attributes:
        name: what is special about it.
        call: launches; results are on the meta device.
    """

    name: str
    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class CompiledLaunch:
    """One kernel compiled for one device.

    Attributes:
        kernel: its name.
        target: as compilers write it: sm_90.
        config: constants and launch options, "name=value" separated by blanks.
        shared_bytes, limit_bytes: shared memory of a block, and the most that one may have.
        expected_bytes: what the kernel's formula says at most; None: it has no formula.
        registers: of a thread.
        spill_bytes: local memory of a thread: registers that did not fit, and its stack.
        tensor_columns: tensor memory of a block, on sm_100.
        occupancy: blocks that a processor holds at a time.
    """

    kernel: str
    target: str
    config: str
    shared_bytes: int
    limit_bytes: int
    expected_bytes: int | None
    registers: int
    spill_bytes: int
    tensor_columns: int
    occupancy: int


Lister = Callable[[ModelConfig, torch.dtype], Iterator[Reach]]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def experts(config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
    """The mixture of experts: block sizes follow from the rows."""
    count, inner, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
    if choose_experts(count, inner, dtype, CUDA)[0] != "triton":
        return
    for rows in ROWS:
        call = partial(
            cuda_kernels().experts,
            meta(rows, width, dtype=dtype),
            meta(rows, config.top_k_experts, dtype=torch.int64),
            meta(rows, config.top_k_experts),
            meta(count, 2 * inner, width, dtype=dtype),
            meta(count, width, inner, dtype=dtype),
        )
        yield Reach(f"{rows} rows", call)


def head(config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
    """The streamed head: one size of blocks for all."""
    if choose_head(config.vocab_size, CUDA)[0] != "triton":
        return
    with torch.device("meta"):
        table = Embedding(config.vocab_size, config.hidden_size).to(dtype)
    bound = Head(table, config.final_logit_softcapping, device=CUDA)
    for rows in ROWS:
        hidden = meta(rows, config.hidden_size, dtype=dtype)
        call = partial(bound.read, hidden, meta(rows), meta(rows), Controls())
        yield Reach(f"{rows} rows", call)


def attention(config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
    """Attention of batches of canvases, prompts and single tokens, in both kinds of layers."""
    return _attention(config, dtype, {"full": dtype, "sliding": dtype})


def packed_attention(config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
    """The same over keys and values in e4m3, which full layers alone have."""
    return _attention(config, dtype, {"full": E4M3})


def _attention(
    config: ModelConfig, dtype: torch.dtype, cached: Mapping[str, torch.dtype]
) -> Iterator[Reach]:
    if choose_attention(dtype, CUDA)[0] != "triton":
        return
    fused = cuda_kernels().attend
    for kind, stored in cached.items():
        shape = getattr(config, kind)
        for prefix in KEYS:
            for segments, length in ((16, config.canvas_length), (1, 1024), (1, 1)):
                rows, reach = segments * length, length + prefix
                q = meta(rows, config.num_attention_heads, shape.head_dim, dtype=dtype)
                size = 2, shape.num_key_value_heads, segments * reach, shape.head_dim
                at = PagedSegments(
                    slots=meta(rows, dtype=torch.int64),
                    **{name: meta(segments, dtype=torch.int64)
                       for name in ("first", "length", "stored", "low", "causal")},
                    table=meta(segments, reach // PAGE, dtype=torch.int64),
                    window=config.sliding_window if kind == "sliding" else None,
                    page=PAGE, longest=length, reach=reach,
                )  # fmt: skip
                call = partial(fused, q, meta(*size, dtype=stored), at)
                yield Reach(f"{kind}, {segments} x {length} rows, {reach} keys", call)


KERNELS: dict[str, Lister] = {
    "attention": attention,
    "attention, fp8": packed_attention,
    "experts": experts,
    "head": head,
}
"""Part of a step -> its calls, those with the largest blocks first."""
