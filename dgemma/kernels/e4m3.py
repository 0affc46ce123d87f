"""Keys and values in 8 bits (e4m3): rounded when they are written, and read back as numbers.

No scale is kept. Keys and values come out of norms, so their size is about one, where e4m3 has a
relative error of 2^-4 at most; what is beyond 448 becomes 448. Knows nothing about pages or layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.workspace import WORKSPACE
from dgemma.types import CACHE_DTYPES

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
BLOCK = 1 << 16
"""Pairs of codes that are looked up at a time: their indices stay in cache."""

_NUMBERS = torch.arange(256, dtype=torch.uint8).view(E4M3).to(torch.float32)
_PAIRS: dict[torch.dtype, Tensor] = {}


def choose_cache(dtype: torch.dtype, asked: str, grad: bool = False) -> tuple[torch.dtype, str]:
    """The dtype of the keys and values of full layers, and the reason as text.

    Args:
        dtype: of the model.
        asked: one of `CACHE_DTYPES`; "auto" is the model's.
        grad: whether gradients are wanted.

    Raises:
        InvalidRequest: an unknown name, or one that has no gradients.
    """
    if asked not in CACHE_DTYPES:
        known = ", ".join(CACHE_DTYPES)
        raise InvalidRequest(f"cache_dtype must be one of {known}, got {asked!r}")
    if asked == "auto":
        return dtype, "auto: as the model"
    if grad:
        raise InvalidRequest("an fp8 cache has no gradients; leave cache_dtype out")
    return E4M3, "asked for: full layers in e4m3, sliding layers as the model"


def codes(buffer: Tensor) -> Tensor:
    """The memory of e4m3 as uint8, which every operation takes; any other buffer itself."""
    return buffer.view(torch.uint8) if buffer.dtype == E4M3 else buffer


def stored(x: Tensor, buffer: Tensor) -> Tensor:
    """Numbers as `codes(buffer)` holds them. Those too large for e4m3 become its largest ones."""
    if buffer.dtype != E4M3:
        return x
    return x.clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8)


def numbers(found: Tensor, like: Tensor) -> Tensor:
    """Codes uint8 [..., n], n even, as contiguous numbers in the dtype of `like`.

    In scratch memory, which the next call in this thread writes over. On a CPU two codes at a time
    by a table: `.to` converts them one by one and takes three to eight times as long.
    """
    if found.device.type != "cpu":
        return found.view(E4M3).to(like.dtype)
    out = WORKSPACE.take("numbers of e4m3", 1, found.numel(), like)[0]
    table = _pairs(like.dtype)
    words = out.view(table.dtype)
    rows = found.flatten(0, -3) if found.dim() > 2 else found[None]  # [A, S, n]
    pairs = found.shape[-1] // 2
    step = max(1, BLOCK // max(1, pairs))
    room = WORKSPACE.take("pairs of e4m3", 1, step * pairs, like, torch.int32)[0]
    at = 0
    for row in rows:
        for low in range(0, len(row), step):
            block = row[low : low + step].view(torch.uint16)
            index = room[: block.numel()]
            index.view(block.shape).copy_(block)
            torch.index_select(table, 0, index, out=words[at : at + len(index)])
            at += len(index)
    return out.view(found.shape)


def _pairs(dtype: torch.dtype) -> Tensor:
    """Two numbers side by side, as one integer, for each pair of codes: [65536]."""
    if dtype not in _PAIRS:
        one = _NUMBERS.to(dtype)
        both = torch.stack((one.repeat(256), one.repeat_interleave(256)), -1)
        word = torch.int64 if dtype.itemsize == 4 else torch.int32
        _PAIRS[dtype] = both.view(word).flatten()
    return _PAIRS[dtype]
