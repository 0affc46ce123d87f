"""The Triton kernels, imported when one of them is chosen: triton is an extra."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor

from dgemma.errors import MissingExtra


class CudaKernels(NamedTuple):
    """Every kernel for CUDA, by what it computes."""

    attend: Callable[..., Tensor]
    experts: Callable[..., Tensor]
    absorb: Callable[..., Tensor]
    block_products: Callable[..., Tensor]
    experts_packed: Callable[..., Tensor]
    linear_packed: Callable[..., Tensor]


@cache
def cuda_kernels() -> CudaKernels:
    """All of them.

    Raises:
        MissingExtra: the triton package is not installed.
    """
    try:
        from dgemma.kernels.attention_paged_triton import attend_pages
        from dgemma.kernels.experts_packed_triton import experts_packed, linear_packed
        from dgemma.kernels.experts_triton import experts_triton
        from dgemma.kernels.head_triton import absorb, block_products
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "the CUDA kernels need the triton package; pip install 'dgemma[cuda]'"
        ) from error
    return CudaKernels(
        attend_pages, experts_triton, absorb, block_products, experts_packed, linear_packed
    )
