"""The root-mean-square norm: torch's own, and the same sums in blocks that stay in cache.

Knows nothing about the place of a norm in a layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.workspace import WORKSPACE

BLOCK_ELEMENTS = 1 << 20
"""Numbers of a block: 4 MiB in fp32."""


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x * (mean(x^2) + eps)^-0.5 * weight` over the last axis in fp32, cast back: like `x`.

    In 16 bit on a CPU torch makes four fp32 copies of `x`, each in fresh memory. Blocks of rows
    take the same steps in memory that is kept; the result is the same, bit for bit.
    """
    learns = x.requires_grad or (weight is not None and weight.requires_grad)
    if x.dtype == torch.float32 or x.is_cuda or (torch.is_grad_enabled() and learns):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    flat = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(flat)
    width = flat.shape[1]
    rows = max(1, BLOCK_ELEMENTS // width)
    for low in range(0, len(flat), rows):
        block = flat[low : low + rows]
        wide = WORKSPACE.take("norm", len(block), width, x, torch.float32).copy_(block)
        square = torch.mul(wide, wide, out=WORKSPACE.take("square", len(block), width, wide))
        wide.mul_(square.mean(-1, keepdim=True).add_(eps).rsqrt_())
        if weight is not None:
            wide.mul_(weight)
        out[low : low + rows] = wide
    return out.view(x.shape)
