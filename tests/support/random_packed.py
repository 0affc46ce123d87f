"""Random packed weights of every format, with numbers of about one."""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.quant.affine import Affine
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import GgufFormat
from dgemma.quant.integers import Integers
from dgemma.quant.packed import Format, Packed

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where blocks have 16-bit floats, if not at 0 alone."""


def random_packed(form: Format, *lead: int, columns: int, seed: int = 0) -> Packed:
    """[*lead, columns]; codes are any bits, scales positive and small.

    Scales of one byte: e8m0 for groups of 32 in 4 bit and 8 bit, else e4m3.
    """
    g = torch.Generator().manual_seed(seed + columns)

    def some(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g) * 0.9 + 0.1

    if isinstance(form, GgufFormat):
        count = columns // form.elements
        blocks = some(*lead, count, form.size)
        if form.name == "MXFP4":
            blocks[..., 0] = 118 + blocks[..., 0] % 8
        elif form.name != "NVFP4":
            for at in HALVES.get(form.name, (0,)):
                most = 2048 if form.elements == 256 else 64  # the former have scales of six bits
                scale = (positive(*lead, count, 1) / most).to(torch.float16)
                blocks[..., at : at + 2] = scale.view(torch.uint8)
        parts = {"blocks": blocks.flatten(-2)}
        if form.name == "NVFP4":
            blocks[..., :4] = 40 + blocks[..., :4] % 16 + (blocks[..., :4] & 128)
            blocks[..., 0, 1] = 127  # counts as zero
            parts = {"blocks": blocks.flatten(-2), "scale": positive(*lead, 1)}
        return Packed(form, columns, parts)
    if isinstance(form, Affine):
        groups = -(-columns // form.group)
        scale, bias = (positive(*lead, groups).bfloat16() / 2**form.bits for _ in range(2))
        codes = some(*lead, columns * form.bits // 8)
        return Packed(form, columns, {"codes": codes, "scale": scale, "bias": bias - 0.5})
    if isinstance(form, Integers):
        groups = -(-columns // (form.group or columns))
        parts = {"codes": some(*lead, columns * form.bits // 8)}
        parts["scale"] = positive(*lead, groups).bfloat16() / 2**form.bits
        if form.zero is None:
            parts["zero"] = some(*lead, groups) % 2**form.bits
        elif form.bits == 8 and form.zero == 0:  # as files have signed ones
            parts["codes"] = parts["codes"].view(torch.int8)
        return Packed(form, columns, parts)
    if isinstance(form, Float4):
        groups = columns // form.group
        codes = some(*lead, columns // 2)
        if form.group == 32:
            scale = (124 + some(*lead, groups) % 4).view(torch.float8_e8m0fnu)
            return Packed(form, columns, {"codes": codes, "scale": scale})
        scale = positive(*lead, groups).to(torch.float8_e4m3fn)
        return Packed(form, columns, {"codes": codes, "scale": scale, "outer": positive(*lead, 1)})
    assert isinstance(form, Float8)
    codes = some(*lead, columns)
    codes[codes & 127 == 127] = 1  # no NaN
    groups = -(-columns // (form.group or columns))
    if form.group == 32:
        scale8 = (120 + some(*lead, groups) % 4).view(torch.float8_e8m0fnu)
        return Packed(form, columns, {"codes": codes.view(torch.float8_e4m3fn), "scale": scale8})
    scale = positive(*lead, groups) / 64
    return Packed(form, columns, {"codes": codes.view(torch.float8_e4m3fn), "scale": scale})
