"""The launches with packed weights that a network reaches, for `gpu_launches`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dgemma.bench.gpu_launches import CUDA, Lister, Reach, meta
from dgemma.bench.precisions import PRECISIONS, Precision, empty_packed
from dgemma.kernels.experts import choose_experts
from dgemma.model.config import ModelConfig
from dgemma.quant.choice import TRITON

ROWS = (4096, 1024, 256, 1)
"""Rows of a forward, most first: enough to reach every block size of the experts."""

PRODUCT_ROWS = (4096, 1)
"""Those of plain products: all from 97 rows on have the same blocks."""


def _listed(precision: Precision, config: ModelConfig, dtype: torch.dtype) -> Iterator[Reach]:
    """Experts and plain products in the formats of one kind of file."""
    count, inner, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
    if choose_experts(count, inner, dtype, CUDA)[0] != "triton":
        return
    for rows in ROWS:
        x = meta(rows, width, dtype=dtype)
        for up in precision.expert_up:
            for down in precision.expert_down:
                call = partial(
                    TRITON.experts,
                    x,
                    meta(rows, config.top_k_experts, dtype=torch.int64),
                    meta(rows, config.top_k_experts),
                    empty_packed(up, count, 2 * inner, columns=width),
                    empty_packed(down, count, width, columns=inner),
                )
                yield Reach(f"experts of {up.name} and {down.name}, {rows} rows", call)
        if rows not in PRODUCT_ROWS:
            continue
        heads = {config.num_attention_heads * shape.head_dim: ()
                 for shape in (config.sliding, config.full)}  # fmt: skip
        dense = config.intermediate_size
        products = {
            **{(form, n, width): () for n in heads for form in precision.attention},
            **{(form, width, n): () for n in heads for form in precision.attention},
            **{(form, dense, width): () for form in precision.dense_up},
            **{(form, width, dense): () for form in precision.dense_down},
        }
        for form, outputs, columns in products:
            call = partial(
                TRITON.linear,
                meta(rows, columns, dtype=dtype),
                empty_packed(form, outputs, columns=columns),
            )
            yield Reach(f"product of {form.name} [{outputs}, {columns}], {rows} rows", call)


PACKED: dict[str, Lister] = {
    precision.name: partial(_listed, precision) for precision in PRECISIONS if precision.expert_up
}
"""Precision -> its calls, those with the largest blocks first."""
