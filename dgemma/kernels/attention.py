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

from dgemma.errors import InvalidRequest
from dgemma.kernels.workspace import WORKSPACE
from dgemma.types import ATTENTION_PATHS

SCORES = 1 << 22
"""Most scores that `products` makes at a time: 8 MiB in 16 bit."""
FEWEST = 16
"""Queries of a block, however long the prefix: fewer would read the keys too often."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q [Hkv, G, T, hd], keys and values [Hkv, S, hd], mask bool [T, M] or None -> like q."""


def plain(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The reference: softmax in fp32, rounded to the keys' dtype, as in the oracle's eager way."""
    scores = (q.flatten(1, 2) @ keys.transpose(1, 2)).view(*q.shape[:3], -1)
    _bar(scores, mask)
    belief = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    return (belief.flatten(1, 2) @ values).view(q.shape)


def _bar(scores: Tensor, mask: Tensor | None) -> None:
    """Put the least number at the masked ones of the last keys: scores [..., T, S]."""
    if mask is not None:
        scores[..., -mask.shape[1] :].masked_fill_(~mask, torch.finfo(scores.dtype).min)


def sdpa(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own kernel: never a matrix of scores."""
    if mask is not None:
        mask = F.pad(mask, (keys.shape[1] - mask.shape[1], 0), value=True).repeat(q.shape[1], 1)
    folded = q.flatten(1, 2)[None]
    out = F.scaled_dot_product_attention(folded, keys[None], values[None], mask, scale=1.0)
    return out.view(q.shape)


def products(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Two products for a block of queries of one key head; its scores stay in cache.

    Head by head, since torch's batched product packs all keys anew for each block of queries where
    the heads lie apart in memory, as they do in a cache with room after its tokens.
    """
    heads, group, length, width = q.shape
    seen = keys.shape[1]
    out = torch.empty_like(q)
    step = max(FEWEST, SCORES // (group * seen))
    for low in range(0, length, step):
        rows = slice(low, low + step)
        barred = None if mask is None else mask[rows]
        for head in range(heads):
            block = q[head, :, rows].reshape(-1, width)
            scores = WORKSPACE.take("scores", block.shape[0], seen, q)
            torch.mm(block, keys[head].T, out=scores)
            _bar(scores.view(group, -1, seen), barred)
            belief = WORKSPACE.take("belief", block.shape[0], seen, q)
            torch.softmax(scores, -1, out=belief)
            out[head, :, rows] = torch.mm(belief, values[head]).view(group, -1, width)
    return out


ATTENTION: dict[str, Kernel] = {"plain": plain, "sdpa": sdpa, "products": products}


PAGED = ("gathered", "triton")
"""Names of the kernels of the paged path: plain torch, and one that reads pages in place."""


def choose_path(device: torch.device, grad: bool = False, path: str = "auto") -> tuple[str, str]:
    """The attention path, "reference" or "paged", and the reason as text.

    Args:
        device: of weights and rows.
        grad: whether gradients are wanted.
        path: one of `ATTENTION_PATHS`; "auto" is the reference on a CPU and the paged path on CUDA.

    Raises:
        InvalidRequest: an unknown path, or one that has no gradients.
    """
    if path not in ATTENTION_PATHS:
        raise InvalidRequest(f"attention must be one of {', '.join(ATTENTION_PATHS)}, got {path!r}")
    if grad:
        if path == "paged":
            raise InvalidRequest("the paged attention has no gradients; leave attention out")
        return "reference", "gradients are wanted"
    if path != "auto":
        return path, "asked for"
    where = {"cpu": "a CPU", "cuda": "CUDA", "mps": "Metal"}.get(device.type, device.type)
    return "paged" if device.type == "cuda" else "reference", f"auto: on {where}"


def choose_attention(
    dtype: torch.dtype, device: torch.device, grad: bool = False, path: str = "auto"
) -> tuple[str, str]:
    """The name of the kernel on the path that `choose_path` takes, and the reason as text.

    Args:
        dtype, device: of weights and rows.
        grad, path: see `choose_path`.

    Raises:
        InvalidRequest: see `choose_path`.
    """
    if choose_path(device, grad, path)[0] == "paged":
        if device.type == "cuda" and find_spec("triton") is not None:
            return "triton", "all requests at once, keys read in their pages"
        return "gathered", "all requests at once in plain torch, keys gathered first"
    if grad:
        return "sdpa", "torch's own kernel, which has gradients"
    if device.type == "cpu" and dtype != torch.float32:
        return "products", "16-bit matrix products on a CPU, 1.5 to 3 times as fast as torch's sdpa"
    return "sdpa", "torch's own kernel, per request: keys are never padded"


def grouped(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, kernel: str = "sdpa"
) -> Tensor:
    """Attention with softmax scale 1 where several query heads share a key head.

    Args:
        q: [T, H, hd]; H is a multiple of the key/value heads.
        keys, values: [Hkv, S, hd], not copied.
        mask: bool [T, M] of the last M keys, True if a query sees a key. Keys before those are
            seen; without a mask all are.
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
