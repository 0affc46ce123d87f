"""Packs plain weights in 8 bit while they are loaded, for a budget that has no room for 16."""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.quant.affine import Affine
from dgemma.quant.packed import Packed

GROUP = 64
EIGHT_BIT = Affine(8, GROUP)
"""8.5 bits a number: codes, and a scale and a bias in bf16 for each group of 64 columns."""


def pack_eight_bit(weight: Tensor) -> Packed:
    """The nearest codes between the least and the largest number of each group.

    Args:
        weight: plain numbers, [..., R, K].
    """
    columns = weight.shape[-1]
    groups = -(-columns // GROUP)
    # The last group, where cut short, is filled with its own last number: that moves no end.
    fill = groups * GROUP - columns
    whole = weight.to(torch.float32)
    if fill:
        whole = torch.cat([whole, whole[..., -1:].expand(*whole.shape[:-1], fill)], -1)
    whole = whole.view(*weight.shape[:-1], groups, GROUP)
    low, high = whole.amin(-1, keepdim=True), whole.amax(-1, keepdim=True)
    bias = low.to(torch.bfloat16)
    # From the rounded bias on, and rounded up: the largest number keeps a code.
    step = (high - bias.float()) / 255
    scale = (step * (1 + 2**-8)).to(torch.bfloat16)
    codes = (whole - bias.float()) / torch.where(scale == 0, 1.0, scale.float())
    codes = codes.round().clamp(0, 255).to(torch.uint8).flatten(-2)[..., :columns]
    return Packed(
        EIGHT_BIT,
        columns,
        {"codes": codes.contiguous(), "scale": scale.squeeze(-1), "bias": bias.squeeze(-1)},
    )
