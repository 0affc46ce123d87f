"""The number formats of GGUF files: rows of blocks, each with its own scales among its bytes.

A packed matrix has the part "blocks", uint8 [..., R, bytes of a row]; NVFP4 also has "scale", fp32
[..., R, 1]. Every function turns blocks, uint8 [B, bytes], into fp32 [B, elements].
Source: ggml's `ggml-common.h` and `ggml-quants.c`. "Halves": byte i of n / 2 holds element i in its
low nibble and element i + n / 2 in its high one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.quant.packed import Groups, Parts

Places = tuple[tuple[int, int], ...]
"""Bytes of a block, each with a mask: all of its bits are set where a scale is not finite."""
HALF = 0x7C
"""The exponent in the second byte of a 16-bit float."""
CHUNK = 1 << 24
"""Bytes that are looked at together."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True)
class GgufFormat:
    """One block format; see `Format`.

    Attributes:
        name: ggml's word.
        number: ggml's type number.
        elements, size: numbers and bytes of a block.
        values: unpacks blocks.
        places: where a block has its scales; see `finite_blocks`.
        codes: of 4 bits, uint8 [B, elements]; scale and bias of each group, fp32 [B, groups].
    """

    name: str
    number: int
    elements: int
    size: int
    values: Callable[[Tensor], Tensor]
    places: Places = ((1, HALF),)
    codes: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`."""
        blocks = parts["blocks"]
        rows = blocks.shape[:-1]
        found = self.values(blocks.reshape(-1, self.size)).view(*rows, -1)[..., :columns]
        return found * parts["scale"] if "scale" in parts else found

    def finite(self, parts: Parts) -> bool:
        """Whether the scales among the codes are numbers; see `finite_blocks`."""
        return finite_blocks(parts["blocks"].reshape(-1, self.size), self.places)

    @property
    def four_bits(self) -> bool:
        """See `GroupedFormat`."""
        return self.codes is not None

    def groups(self, parts: Parts, columns: int) -> Groups:
        """See `GroupedFormat`."""
        assert self.codes is not None
        blocks = parts["blocks"]
        found = self.codes(blocks.reshape(-1, self.size))
        codes, scale, bias = (part.reshape(*blocks.shape[:-1], -1) for part in found)
        group = self.elements // found[1].shape[-1]
        return Groups(codes[..., :columns], scale, bias, group)


def finite_blocks(blocks: Tensor, places: Places) -> bool:
    """Whether no scale in blocks is NaN or infinite, without unpacking them.

    Args:
        blocks: uint8 [B, bytes of a block].
        places: the bytes to look at, and what they must not be.
    """
    pieces = torch.split(blocks, max(1, CHUNK // blocks.shape[1])) if places else ()
    return not any(
        bool(((piece[:, at] & mask) == mask).any()) for piece in pieces for at, mask in places
    )


def _half(blocks: Tensor, at: int) -> Tensor:
    """A 16-bit float of each block: fp32 [B, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def _halves(codes: Tensor) -> Tensor:
    """The nibbles of bytes, uint8 [..., n / 2] -> [..., n]."""
    return torch.cat((codes & 15, codes >> 4), -1)


def _bits(words: Tensor) -> Tensor:
    """The bits of bytes, the lowest first: uint8 [B, n] -> [B, 8 n]."""
    return (words[..., None] >> _count(8, words)).view(len(words), -1) & 1


def _count(n: int, like: Tensor, step: int = 1) -> Tensor:
    return torch.arange(0, n * step, step, dtype=torch.uint8, device=like.device)


def _look_up(table: tuple[float, ...], codes: Tensor) -> Tensor:
    values = torch.tensor(table, dtype=torch.float32, device=codes.device)
    return values[codes.to(torch.int32)]


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_halves(blocks[:, 2:]).to(torch.float32) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _halves(blocks[:, 4:]) + _half(blocks, 2)


def _five(blocks: Tensor, at: int) -> Tensor:
    """Four bytes of highest bits, then nibbles: fp32 [B, 32] of 0..31."""
    low, high = _halves(blocks[:, at + 4 :]), _bits(blocks[:, at : at + 4])
    return (low | (high << 4)).to(torch.float32)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_five(blocks, 2) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _five(blocks, 4) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of the eight sub-blocks of Q4_K and Q5_K: fp32 [B, 8, 1] each."""
    first, second, third = torch.split(blocks[:, 4:16], 4, -1)
    scale = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), -1)
    least = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), -1)
    return (_half(blocks, 0) * scale)[..., None], (_half(blocks, 2) * least)[..., None]


def _chunks(blocks: Tensor, at: int) -> Tensor:
    """128 bytes, each 32 of which hold two sub-blocks, low nibbles first: [B, 8, 32]."""
    codes = blocks[:, at : at + 128].view(-1, 4, 1, 32)
    return torch.cat((codes & 15, codes >> 4), 2).view(-1, 8, 32)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, least = _scales(blocks)
    return (scale * _chunks(blocks, 16) - least).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, least = _scales(blocks)
    high = (blocks[:, None, 16:48] >> _count(8, blocks)[:, None]) & 1  # bit j is of sub-block j
    return (scale * (_chunks(blocks, 48) | (high << 4)) - least).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].view(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), 2).view(-1, 2, 4, 32)
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> _count(4, blocks, 2)[:, None]) & 3
    codes = (low | (high << 4)).view(torch.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return (scale[..., None] * codes.view(-1, 16, 16)).view(-1, 256)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _look_up(IQ4, _halves(blocks[:, 2:]))


def _mxfp4(blocks: Tensor) -> Tensor:
    # Half of 2^(e - 127) times twice the number, as ggml does: so neither is too small.
    exponent = blocks[:, :1].to(torch.int32)
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return bits.view(torch.float32) * (_look_up(E2M1, _halves(blocks[:, 1:])) * 2)


def _nvfp4(blocks: Tensor) -> Tensor:
    # ggml reads the scales without a sign; what would be NaN counts as 0.
    bits = blocks[:, :4].to(torch.int32)
    exponent, fraction = (bits >> 3) & 15, (bits & 7).to(torch.float32)
    power = ((exponent + 120) << 23).view(torch.float32)
    scale = torch.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * power)
    scale = torch.where(bits == 127, 0.0, scale)[..., None]
    return (scale * _look_up(E2M1, _halves(blocks[:, 4:].view(-1, 4, 8)))).view(-1, 64)


def _q4_0_codes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _half(blocks, 0)
    return _halves(blocks[:, 2:]), scale, -8 * scale


def _q4_1_codes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _halves(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q4_k_codes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, least = _scales(blocks)
    return _chunks(blocks, 16).flatten(1), scale[..., 0], -least[..., 0]


TWO = ((1, HALF), (3, HALF))
Q4_0 = GgufFormat("Q4_0", 2, 32, 18, _q4_0, codes=_q4_0_codes)
Q4_1 = GgufFormat("Q4_1", 3, 32, 20, _q4_1, TWO, _q4_1_codes)
Q5_0 = GgufFormat("Q5_0", 6, 32, 22, _q5_0)
Q5_1 = GgufFormat("Q5_1", 7, 32, 24, _q5_1, TWO)
Q8_0 = GgufFormat("Q8_0", 8, 32, 34, _q8_0)
Q4_K = GgufFormat("Q4_K", 12, 256, 144, _q4_k, TWO, _q4_k_codes)
Q5_K = GgufFormat("Q5_K", 13, 256, 176, _q5_k, TWO)
Q6_K = GgufFormat("Q6_K", 14, 256, 210, _q6_k, ((209, HALF),))
IQ4_NL = GgufFormat("IQ4_NL", 20, 32, 18, _iq4_nl)
MXFP4 = GgufFormat("MXFP4", 39, 32, 17, _mxfp4, ((0, 0xFF),))
NVFP4 = GgufFormat("NVFP4", 40, 64, 36, _nvfp4, ())
FORMATS = {
    form.number: form
    for form in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4, NVFP4)
}
"""By ggml's type number."""
