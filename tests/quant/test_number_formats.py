"""Each format against its formula, written out number by number."""

from __future__ import annotations

import pytest
import torch

from dgemma.quant.affine import Affine, bit_stream
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8, e4m3_numbers
from tests.support.packing import FP4, stream

GENERATOR = torch.Generator().manual_seed(1)


def random_bytes(*shape: int) -> torch.Tensor:
    """Any bytes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=GENERATOR)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("columns", [352, 704, 2112])
def test_bit_streams(bits: int, columns: int) -> None:
    """Every code comes back, those that cross words too."""
    codes = torch.randint(0, 2**bits, (3, columns), generator=GENERATOR)
    found = bit_stream(stream(codes, bits).view(torch.uint8), bits)
    assert torch.equal(found.long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine(bits: int) -> None:
    """w = scale q + bias in fp32, one rounding."""
    codes = torch.randint(0, 2**bits, (2, 5, 704), generator=GENERATOR)
    scale, bias = torch.randn(2, 2, 5, 11, generator=GENERATOR).bfloat16()
    parts = {"codes": stream(codes, bits).view(torch.uint8), "scale": scale, "bias": bias}
    found = Affine(bits, 64).unpack(parts, 704)
    wide = (value.double().repeat_interleave(64, -1) for value in (scale, bias))
    right = codes.double() * next(wide) + next(wide)
    assert torch.equal(found, right.float())


@pytest.mark.parametrize(("group", "columns"), [(16, 704), (32, 352), (16, 2112), (32, 2112)])
def test_fp4(group: int, columns: int) -> None:
    """Low four bits first; the outer scale of each row, rounded once."""
    codes = random_bytes(6, columns // 2)
    scale = torch.rand(6, columns // group, generator=GENERATOR).to(torch.float8_e4m3fn)
    outer = torch.rand(6, 1, generator=GENERATOR)
    found = Float4(group).unpack({"codes": codes, "scale": scale, "outer": outer}, columns)
    values = torch.empty(6, columns, dtype=torch.float64)
    values[:, 0::2], values[:, 1::2] = FP4[(codes & 15).long()], FP4[(codes >> 4).long()]
    right = values * scale.double().repeat_interleave(group, -1) * outer.double()
    assert torch.equal(found, right.float())


def test_exponents() -> None:
    """Every byte of a scale without a mantissa but NaN: 2^(e - 127), zero is no special case."""
    scale = torch.arange(255, dtype=torch.uint8).view(torch.float8_e8m0fnu).view(1, 255)
    codes = torch.full((1, 255 * 16), 0x22, dtype=torch.uint8)  # 1.0 twice
    found = Float4(32).unpack({"codes": codes, "scale": scale}, 255 * 32)[0, ::32]
    assert found.tolist() == [2.0 ** (e - 127) for e in range(255)]


def test_fp8_in_groups() -> None:
    """All finite codes; the last group is cut short."""
    codes = torch.arange(254, dtype=torch.uint8)
    codes = (codes + (codes >= 127).to(torch.uint8)).view(torch.float8_e4m3fn).view(2, 127)
    scale = torch.rand(2, 4, generator=GENERATOR)
    found = Float8(32).unpack({"codes": codes, "scale": scale}, 127)
    right = codes.double() * scale.double().repeat_interleave(32, -1)[:, :127]
    assert torch.equal(found, right.float())


def test_every_code_of_e4m3() -> None:
    """The table gives what torch's own conversion gives, NaN included."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    found = e4m3_numbers(codes)
    assert torch.equal(found.nan_to_num(99.0), codes.float().nan_to_num(99.0))
