"""Rounds rows of numbers to GGUF's blocks of 32, byte for byte as ggml's reference does.

Source: ggml's `ggml-quants.c`; the tests compare with `gguf.quants.quantize`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 32


def _away(values: Tensor) -> Tensor:
    """Rounded to whole numbers, halves away from zero."""
    return (values.abs() + 0.5).floor_().mul_(values.sign())


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = _away(blocks * _inverse(scale)).to(torch.int8).view(torch.uint8)
    return torch.cat((scale.to(torch.float16).view(torch.uint8), codes), -1)


def _q4_0(blocks: Tensor) -> Tensor:
    # The number of the greatest magnitude becomes the code 0, which means -8.
    place = blocks.abs().argmax(-1, keepdim=True)
    scale = blocks.gather(-1, place) / -8
    codes = (blocks * _inverse(scale) + 8.5).trunc_().clamp_(0, 15).to(torch.uint8)
    low, high = codes.chunk(2, -1)
    return torch.cat((scale.to(torch.float16).view(torch.uint8), low | (high << 4)), -1)


GGUF_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "Q4_0": _q4_0}
"""ggml's word for a format -> fp32 blocks [B, 32] to their bytes, uint8 [B, bytes]."""


def gguf_blocks(kind: str, weight: Tensor) -> Tensor:
    """The rows of a matrix in blocks: fp32 [R, K], K a multiple of 32 -> uint8 [R, bytes]."""
    rows = weight.shape[0]
    return GGUF_ROUNDING[kind](weight.reshape(-1, BLOCK)).view(rows, -1)
