"""The block formats of GGUF: bit for bit the numbers of ggml's formulas, written out by element."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgemma.quant.gguf_blocks import FORMATS, NVFP4, GgufFormat
from dgemma.quant.packed import Packed

ROWS = (256, 352, 704, 2112, 2816, 768)
"""Widths of the released model, and multiples of 256."""
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
T = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half(b: bytes, at: int) -> float:
    """A 16-bit float."""
    return float(struct.unpack_from("<e", b, at)[0])


def signed(byte: int) -> int:
    """A byte as a number from -128 to 127."""
    return byte - 256 if byte > 127 else byte


def nibble(b: bytes, at: int, e: int, n: int = 32) -> int:
    """Element e of n in low and high halves."""
    return b[at + e] & 15 if e < n // 2 else b[at + e - n // 2] >> 4


def e2m1(q: int) -> float:
    """Two bits of exponent, one of fraction."""
    return E2M1[q & 7] * (-1.0 if q & 8 else 1.0)


def k_scale(b: bytes, j: int) -> tuple[int, int]:
    """Scale and minimum of sub-block j; the twelve bytes begin at 4."""
    b = b[4:16]
    if j < 4:
        return b[j] & 63, b[j + 4] & 63
    return (b[j + 4] & 15) + 16 * (b[j - 4] >> 6), (b[j + 4] >> 4) + 16 * (b[j] >> 6)


def five(b: bytes, at: int, e: int) -> int:
    """A code of Q5_0 or Q5_1."""
    return nibble(b, at + 4, e) + 16 * ((struct.unpack_from("<I", b, at)[0] >> e) & 1)


def single(x: float) -> float:
    """Rounded to 32 bits."""
    return float(torch.tensor(x, dtype=torch.float64).to(torch.float32))


def k_value(b: bytes, e: int, codes: int, five_bits: bool) -> float:
    """Q4_K and Q5_K, every product rounded to fp32."""
    j, i = divmod(e, 32)
    scale, least = k_scale(b, j)
    byte = b[codes + 32 * (j // 2) + i]
    q = (byte >> 4 if j % 2 else byte & 15) + (16 * ((b[16 + i] >> j) & 1) if five_bits else 0)
    d, m = single(half(b, 0) * scale), single(half(b, 2) * least)
    return single(d * q) - m


def q6_k(b: bytes, e: int) -> float:
    """The element of 128 h + 32 g + i."""
    h, g, i = e // 128, e % 128 // 32, e % 32
    q = (b[64 * h + 32 * (g & 1) + i] >> 4 * (g >> 1)) & 15
    q += 16 * ((b[128 + 32 * h + i] >> 2 * g) & 3)
    return single(half(b, 208) * signed(b[192 + e // 16])) * (q - 32)


def nvfp4(b: bytes, e: int) -> float:
    """Sixteen elements for each scale; the scale's sign is not read, 0x7F is zero."""
    s, i = b[e // 16], e % 16
    exponent, fraction = (s >> 3) & 15, s & 7
    scale = fraction / 512 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    scale = 0.0 if s == 127 else scale
    return scale * e2m1(nibble(b, 4 + 8 * (e // 16), i, 16))


FORMULAS: dict[str, Callable[[bytes, int], float]] = {
    "Q4_0": lambda b, e: half(b, 0) * (nibble(b, 2, e) - 8),
    "Q4_1": lambda b, e: single(half(b, 0) * nibble(b, 4, e)) + half(b, 2),
    "Q5_0": lambda b, e: half(b, 0) * (five(b, 2, e) - 16),
    "Q5_1": lambda b, e: single(half(b, 0) * five(b, 4, e)) + half(b, 2),
    "Q8_0": lambda b, e: half(b, 0) * signed(b[2 + e]),
    "Q4_K": lambda b, e: k_value(b, e, 16, False),
    "Q5_K": lambda b, e: k_value(b, e, 48, True),
    "Q6_K": q6_k,
    "IQ4_NL": lambda b, e: half(b, 0) * T[nibble(b, 2, e)],
    "MXFP4": lambda b, e: 2.0 ** (b[0] - 128) * (2 * e2m1(nibble(b, 1, e))),
    "NVFP4": nvfp4,
}
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
          "MXFP4": (), "NVFP4": ()}  # fmt: skip
"""Where 16-bit floats are, if not at 0 alone."""


def random_blocks(form: GgufFormat, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random bytes with finite scales: uint8 [rows, bytes of a row]."""
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns // form.elements
    blocks = torch.randint(0, 256, (count, form.size), generator=generator, dtype=torch.uint8)
    for at in HALVES.get(form.name, (0,)):
        blocks[:, at + 1] &= 0xBB  # no exponent of ones only
    return blocks.view(rows, -1)


def widths(form: GgufFormat) -> list[int]:
    """Those that the format's blocks divide."""
    return [columns for columns in ROWS if columns % form.elements == 0]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_formulas(form: GgufFormat) -> None:
    """Catches a wrong nibble, bit or scale: each element by its own formula."""
    for columns in widths(form):
        blocks = random_blocks(form, 2, columns)
        got = Packed(form, columns, {"blocks": blocks}).dequantise()
        assert got.shape == (2, columns)
        raw = blocks.numpy().tobytes()
        pieces = [raw[at : at + form.size] for at in range(0, len(raw), form.size)]
        right = [FORMULAS[form.name](piece, e) for piece in pieces for e in range(form.elements)]
        assert torch.equal(got.flatten(), torch.tensor(right, dtype=torch.float64).float())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # MXFP4 up to 2^127
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_the_library(form: GgufFormat) -> None:
    """The same numbers as the package that ggml's authors publish."""
    quants = pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
    from gguf import GGMLQuantizationType  # type: ignore[import-not-found,unused-ignore]

    for columns in widths(form):
        blocks = random_blocks(form, 8, columns, seed=1)
        right = quants.dequantize(blocks.numpy(), GGMLQuantizationType(form.number))
        got = Packed(form, columns, {"blocks": blocks}).dequantise()
        assert torch.equal(got, torch.from_numpy(right))


def test_rows_and_experts_are_cut_without_unpacking() -> None:
    """A stack of NVFP4 with a scale a row: one expert, some rows, the whole."""
    blocks = random_blocks(NVFP4, 12, 704).view(3, 4, -1)
    scale = torch.arange(1.0, 13).view(3, 4, 1)
    packed = Packed(NVFP4, 704, {"blocks": blocks, "scale": scale})
    whole = packed.dequantise()
    assert packed.shape == (3, 4, 704)
    assert torch.equal(packed[1].dequantise(), whole[1])
    assert torch.equal(packed[2][torch.tensor([3, 0])].dequantise(), whole[2][[3, 0]])
    bare = Packed(NVFP4, 704, {"blocks": blocks}).dequantise()
    assert torch.equal(whole, bare * scale)
