"""Grouped-query attention of one request: ways that agree within rounding.

The queries that share a key head are folded into more rows of it, so keys and values are never
copied, repeated or padded. Knows nothing about layers, windows or caches.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.errors import MissingExtra
from dgemma.kernels.buffers import SCRATCH

SCORES = 1 << 22
"""Most scores that `products` makes at a time: 8 MiB in 16 bit."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q [Hkv, G, T, hd], keys and values [Hkv, S, hd], mask bool [T, S] or None -> like q."""


def plain(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The reference: softmax in fp32, rounded to the keys' dtype, as in the oracle's eager way."""
    scores = (q.flatten(1, 2) @ keys.transpose(1, 2)).view(*q.shape[:3], -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    belief = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    return (belief.flatten(1, 2) @ values).view(q.shape)


def sdpa(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own kernel: never a matrix of scores."""
    if mask is not None:
        mask = mask.repeat(q.shape[1], 1)
    folded = q.flatten(1, 2)[None]
    out = F.scaled_dot_product_attention(folded, keys[None], values[None], mask, scale=1.0)
    return out.view(q.shape)


def products(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Two batched products a block of queries; a block's scores stay in cache."""
    heads, group, length, width = q.shape
    seen = keys.shape[1]
    out = torch.empty_like(q)
    step = max(8, SCORES // (heads * group * seen))
    for low in range(0, length, step):
        block = q[:, :, low : low + step]
        shape = heads, group * block.shape[2], seen
        scores = SCRATCH.take("scores", shape[0] * shape[1], seen, q).view(shape)
        torch.bmm(block.reshape(heads, -1, width), keys.transpose(1, 2), out=scores)
        if mask is not None:
            barred = ~mask[low : low + step]
            scores.view(heads, group, -1, seen).masked_fill_(barred, torch.finfo(q.dtype).min)
        belief = SCRATCH.take("belief", shape[0] * shape[1], seen, q).view(shape)
        torch.softmax(scores, -1, out=belief)
        out[:, :, low : low + step] = torch.bmm(belief, values).view(block.shape)
    return out


ATTENTION: dict[str, Kernel] = {"plain": plain, "sdpa": sdpa, "products": products}


def choose_attention(
    dtype: torch.dtype, device: torch.device, grad: bool = False
) -> tuple[str, str]:
    """The name of the faster way, and the reason as text; with gradients that is `sdpa`."""
    if grad:
        return "sdpa", "gradients are wanted"
    if device.type == "cpu" and dtype != torch.float32:
        return "products", "16-bit matrix products on a CPU, 1.5 to 3 times as fast as torch's sdpa"
    if device.type == "cuda" and dtype != torch.float32 and find_spec("triton") is not None:
        return "triton", f"{device}: head size 512 and windows without a mask"
    return "sdpa", "torch's own kernel, per request: keys are never padded"


def attend_on_cuda(
    q: Tensor, keys: Tensor, values: Tensor, window: int | None, causal: bool
) -> Tensor:
    """The kernel of `attention_triton.attend`, which needs no mask: [T, H, hd] -> the same.

    Raises:
        MissingExtra: the triton package is not installed.
    """
    try:
        from dgemma.kernels.attention_triton import attend
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "the CUDA kernels need the triton package; pip install 'dgemma[cuda]'"
        ) from error
    return attend(q, keys, values, window, causal)


def grouped(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kernel: str = "sdpa"
) -> Tensor:
    """Attention with softmax scale 1 where several query heads share a key head.

    Args:
        q: [T, H, hd]; H is a multiple of the key/value heads.
        keys, values: [Hkv, S, hd], not copied.
        mask: bool [T, S], True where a query sees a key; None: it sees all.
        kernel: a name of `ATTENTION`.

    Returns:
        [T, H, hd].
    """
    length, heads, width = q.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    folded = q.view(length, kv_heads, group, width).permute(1, 2, 0, 3).contiguous()
    out = ATTENTION[kernel](folded, keys, values, mask)
    return out.permute(2, 0, 1, 3).reshape(length, heads, width)
