"""Writes numbers in the layouts of quantisers, by the rules of each format, apart from our readers.

A `pack` takes a matrix or a stack of them, fp32 [..., R, K]. It gives the tensors to store, by the
words behind the module's name, and the numbers that they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dgemma.weights.names import to_checkpoint
from tests.support.packed_files import is_packed

Parts = tuple[dict[str, Tensor], Tensor]
Pack = Callable[[Tensor], Parts]
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def packed_state(
    state: Mapping[str, Tensor], pack: Pack, *, experts: str = "each",
    which: Callable[[str], bool] = is_packed,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """The tensors of a file, plain ones too, and what they mean by our names.

    Args:
        experts: "each" (one by one), "bare" (stacks, without a word behind their names), "stacks",
            or "switch_glu".
        which: the names of ours that are packed.
    """
    stored, wanted = {}, {name: value.clone() for name, value in state.items()}
    for name, value in state.items():
        theirs = to_checkpoint(name)
        if not which(name):
            stored[theirs] = value
            continue
        for module, piece, target in _pieces(theirs, value, wanted[name], experts):
            parts, numbers = pack(piece)
            bare = value.dim() == 3 and experts == "bare"
            for word, part in parts.items():
                stored[_joined(module, word, bare)] = part
            target.copy_(numbers)
    return stored, wanted


def mixed_state(
    state: Mapping[str, Tensor], packs: Mapping[str, Pack]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`packed_state` in several ways.

    Args:
        packs: by a word in our names; the first that is there counts.
    """
    stored: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    ways: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        ways.setdefault(next((w for w in packs if w in name), ""), {})[name] = value
    for word, some in ways.items():
        pack = packs.get(word)
        theirs, ours = packed_state(
            some, pack or (lambda w: ({}, w)), which=is_packed if pack else lambda name: False
        )
        stored, wanted = stored | theirs, wanted | ours
    return stored, wanted


def _joined(module: str, word: str, bare: bool) -> str:
    if bare:
        return module if word == "weight" else f"{module}_{word.removeprefix('weight_')}"
    return f"{module}.{word}"


def _pieces(
    theirs: str, value: Tensor, target: Tensor, experts: str
) -> list[tuple[str, Tensor, Tensor]]:
    if value.dim() == 2:
        return [(theirs.removesuffix(".weight"), value, target)]
    if experts in ("bare", "stacks"):
        return [(theirs, value, target)]
    base, _, leaf = theirs.rpartition(".")
    parts = ["gate_proj", "up_proj"] if leaf == "gate_up_proj" else [leaf]
    out = []
    for part, rows, goal in zip(
        parts, value.chunk(len(parts), 1), target.chunk(len(parts), 1), strict=True
    ):
        if experts == "switch_glu":
            out.append((f"{base}.switch_glu.{part}", rows, goal))
        else:
            out += [(f"{base}.{e}.{part}", rows[e], goal[e]) for e in range(len(rows))]
    return out


def fp8_blocks(
    weight: Tensor, high: int, wide: int, word: str, kind: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Tensor]:
    """e4m3 with a scale for each block of `high` x `wide`, the last ones cut short."""
    *lead, rows, columns = weight.shape
    scale = torch.empty(*lead, math.ceil(rows / high), math.ceil(columns / wide), dtype=kind)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    numbers = torch.empty_like(weight)
    for i in range(scale.shape[-2]):
        for j in range(scale.shape[-1]):
            area = (..., slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
            most = weight[area].abs().amax((-1, -2)) / 448
            if kind == torch.float8_e8m0fnu:
                most = torch.exp2(torch.ceil(torch.log2(most)))
            scale[..., i, j] = most.to(kind)
            used = scale[..., i, j].float()[..., None, None]
            codes[area] = (weight[area] / used).to(torch.float8_e4m3fn)
            numbers[area] = codes[area].float() * used
    return {"weight": codes, word: scale}, numbers


def fp4_codes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest e2m1 of each value: bytes with element 2i in their low half, and its number."""
    codes = (values.unsqueeze(-1) - FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), FP4[codes.long()]


def nvfp4(weight: Tensor, outer: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scales of 16, the matrix's own scale [..., 1, 1], and the numbers."""
    *lead, rows, columns = weight.shape
    if outer is None:
        outer = weight.abs().amax((-1, -2), keepdim=True) / 2688
    groups = weight.view(*lead, rows, columns // 16, 16)
    scale = (groups.abs().amax(-1) / 6 / outer).to(torch.float8_e4m3fn)
    used = scale.float()[..., None]
    codes, found = fp4_codes(groups / (used * outer[..., None]).clamp(min=1e-30))
    numbers = found * used * outer[..., None]
    return codes.flatten(-2), scale, outer, numbers.view(weight.shape)


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, exponents of groups of 32 as bytes, and the numbers."""
    *lead, rows, columns = weight.shape
    groups = weight.view(*lead, rows, columns // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    codes, found = fp4_codes(groups / torch.exp2(exponent)[..., None])
    numbers = (found * torch.exp2(exponent)[..., None]).view(weight.shape)
    return codes.flatten(-2), (exponent + 127).to(torch.uint8), numbers


def stream(codes: Tensor, bits: int) -> Tensor:
    """Codes as a little-endian stream of bits along the rows, in words of 32: int64 -> U32."""
    out = torch.zeros(*codes.shape[:-1], codes.shape[-1] * bits // 32, dtype=torch.int64)
    for element in range(codes.shape[-1]):
        for bit in range(bits):
            word, place = divmod(element * bits + bit, 32)
            out[..., word] |= ((codes[..., element] >> bit) & 1) << place
    return out.to(torch.uint32)


def affine(weight: Tensor, bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """MLX's default: w = scale q + bias, both in bf16."""
    *lead, rows, columns = weight.shape
    groups = weight.view(*lead, rows, columns // group, group)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale, bias = ((high - low) / (2**bits - 1)).bfloat16(), low.bfloat16()
    codes = ((groups - bias.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    numbers = (codes * scale.float() + bias.float()).view(weight.shape)
    parts = {"weight": stream(codes.long().view(weight.shape), bits)}
    return parts | {"scales": scale.squeeze(-1), "biases": bias.squeeze(-1)}, numbers
