"""Rounding to packed formats: what is stored means the numbers, and no other choice is nearer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.gguf_blocks import Q4_0, Q8_0
from dgemma.quant.gguf_rounding import gguf_blocks
from dgemma.quant.rounding import Float8Rows, Mxfp4, PackedInts, Rounding
from tests.support.packing import FP4

FORMATS: dict[str, Rounding] = {
    "fp8": Float8Rows(),
    "int8": PackedInts(8, 0, symmetric=True, search=False),
    "int4": PackedInts(4, 32, symmetric=False, search=True),
    "int4 symmetric": PackedInts(4, 32, symmetric=True, search=True),
    "mxfp4": Mxfp4(),
}
ERRORS = {"fp8": 0.027, "int8": 0.011, "int4": 0.0775, "int4 symmetric": 0.087, "mxfp4": 0.114}
"""Relative errors on Gaussian numbers that no rounding to nearest should exceed."""


def matrix(rows: int = 16, columns: int = 704, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def nibbles(packed: Tensor, bits: int, count: int) -> Tensor:
    """Codes of words of 32 bits, element by element."""
    each, mask = 32 // bits, (1 << bits) - 1
    wide = packed.to(torch.int64) & 0xFFFFFFFF
    columns = [(wide[..., i // each] >> (bits * (i % each))) & mask for i in range(count)]
    return torch.stack(columns, -1)


def meaning(form: PackedInts, parts: dict[str, Tensor]) -> Tensor:
    """What compressed-tensors' rules say that the parts are."""
    rows, columns = parts["weight_shape"].tolist()
    offset = 1 << (form.bits - 1)
    codes = nibbles(parts["weight_packed"], form.bits, columns) - offset
    scale = parts["weight_scale"].float().repeat_interleave(form.group or columns, -1)
    zero = torch.zeros(rows, 1)
    if not form.symmetric:
        packed = nibbles(parts["weight_zero_point"].T, form.bits, rows).T - offset
        zero = packed.repeat_interleave(form.group or columns, -1)
    return (codes - zero) * scale


@pytest.mark.parametrize("name", FORMATS)
def test_error_and_shapes(name: str) -> None:
    """A scale that is too coarse, or a header that announces other shapes than are written."""
    form, weight = FORMATS[name], matrix(64)
    made = form.round(weight)
    announced = form.round(weight.to("meta")).parts
    assert {n: (t.shape, t.dtype) for n, t in made.parts.items()} == {
        n: (t.shape, t.dtype) for n, t in announced.items()
    }
    error = (made.numbers - weight).norm() / weight.norm()
    assert ERRORS[name] / 3 < error < ERRORS[name]


@pytest.mark.parametrize("name", ["int8", "int4", "int4 symmetric"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 704), (10, 96), (8, 32)])
def test_packed_integers(name: str, rows: int, columns: int) -> None:
    """Codes in another order, an offset or a zero point that is lost; 10 rows end within a word."""
    form = FORMATS[name]
    assert isinstance(form, PackedInts)
    made = form.round(matrix(rows, columns))
    assert torch.equal(meaning(form, made.parts), made.numbers)


@pytest.mark.parametrize("columns", [704, 24, 80])
def test_floats(columns: int) -> None:
    """What our readers make of the parts; 24 and 80 end in a short group."""
    weight = matrix(16, columns)
    made = Float8Rows().round(weight)
    parts = {"codes": made.parts["weight"], "scale": made.parts["weight_scale"]}
    assert torch.equal(Float8().unpack(parts, columns), made.numbers)
    made = Mxfp4().round(weight)
    scale = made.parts["weight_scale"].view(torch.float8_e8m0fnu)
    parts = {"codes": made.parts["weight_packed"], "scale": scale}
    assert torch.equal(Float4(32).unpack(parts, columns), made.numbers)
    power = scale.float().repeat_interleave(32, -1)[:, :columns]
    nearest = (weight.unsqueeze(-1) - FP4 * power.unsqueeze(-1)).abs().amin(-1)
    assert torch.equal((made.numbers - weight).abs(), nearest)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_lowers_the_weighted_error(symmetric: bool) -> None:
    """A search that looks at the plain error alone, or takes the worst."""
    weight = matrix(64)
    importance = torch.rand(704, generator=torch.Generator().manual_seed(1)) ** 8 + 1e-3
    plain = PackedInts(4, 32, symmetric=symmetric, search=False).round(weight).numbers
    searching = PackedInts(4, 32, symmetric=symmetric, search=True)
    even, weighted = searching.round(weight).numbers, searching.round(weight, importance).numbers

    def error(found: Tensor, counts: Tensor) -> float:
        return float(((found - weight).square() * counts).sum())

    ones = torch.ones(704)
    assert error(weighted, importance) < 0.97 * error(even, importance)
    assert error(even, importance) < error(plain, importance)
    assert error(even, ones) < error(weighted, ones)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e-5, 1e-38, 1e4])
def test_even_groups(name: str, value: float) -> None:
    """A group of zeros divides by zero; a scale that is rounded down makes NaN of e4m3."""
    weight = torch.full((8, 64), value)
    weight[:4, 32:] = 0
    found = FORMATS[name].round(weight)
    assert found.numbers.isfinite().all()
    for part in found.parts.values():
        assert not part.is_floating_point() or part.float().isfinite().all()
    assert (found.numbers - weight).abs().max() <= max(0.34 * abs(value), 1e-37)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_blocks_are_those_of_the_library(kind: str) -> None:
    """A half that is rounded to even, the sign of the largest, its first place among equals."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle; it is not installed")
    weight = matrix(64, 2816) * 0.03
    weight[:8] = (weight[:8] * 100).round() / 4  # halves, and several that are the largest
    weight[8, :64] = 0
    wanted = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(gguf_blocks(kind, weight), torch.from_numpy(wanted))


@pytest.mark.parametrize(("kind", "form", "most"), [("Q8_0", Q8_0, 0.0056), ("Q4_0", Q4_0, 0.087)])
def test_gguf_blocks_mean_the_numbers(kind: str, form: Float8, most: float) -> None:
    """Blocks that our own unpacker reads as other numbers."""
    weight = matrix(64)
    found = form.unpack({"blocks": gguf_blocks(kind, weight)}, 704)
    assert (found - weight).norm() / weight.norm() < most
