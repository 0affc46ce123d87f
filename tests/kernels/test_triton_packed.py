"""The Triton products with packed weights against the unpacked ones, format by format."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dgemma.bench.shapes import TINY
from dgemma.errors import InvalidRequest
from dgemma.kernels.experts import experts_sparse
from dgemma.model.layers import Experts, Linear
from dgemma.quant import gguf_blocks as gguf
from dgemma.quant.affine import Affine
from dgemma.quant.choice import TRITON
from dgemma.quant.cuda import decodes, experts_packed, linear_packed, matrix
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.integers import Integers
from dgemma.quant.modules import PackedExperts, PackedLinear, put
from dgemma.quant.packed import Format
from tests.support.interpreter import DEVICE, INTERPRETED, here, rarely, usable
from tests.support.random_packed import random_packed

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.kernels import experts_packed_triton as kernels
from dgemma.kernels.experts_packed_triton import TILES, TILES_32_BIT, candidates
from dgemma.kernels.experts_triton import ExpertTiles

pytestmark = pytest.mark.slow
LOOSE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Of the largest value."""

BLOCKS = [gguf.Q4_0, gguf.Q4_1, gguf.Q5_0, gguf.Q5_1, gguf.Q8_0, gguf.MXFP4, gguf.NVFP4]
WIDE = [gguf.Q4_K, gguf.Q5_K, gguf.Q6_K]
APART: list[Format] = [
    *(Affine(bits, group) for bits in (4, 8) for group in (32, 64, 128)),
    Integers(4, 32, 8), Integers(4, 128, None), Integers(8, 0, 0), Integers(8, 64, 128),
    Float4(16), Float4(32), Float8(), Float8(32), Float8(128),
]  # fmt: skip
FORMATS: list[Format] = [*BLOCKS, *WIDE, *APART]
ONE_BLOCK = ExpertTiles(16, 256, 64, 4, 1)
"""Of all columns: what the interpreter runs fastest."""
formats = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, the same numbers with fewer programs."""
    if INTERPRETED:
        monkeypatch.setattr(kernels, "candidates", lambda *_: (ONE_BLOCK,))


def near(got: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype and got.is_contiguous() and got.isfinite().all()
    error = (got.double() - right.double()).abs().max() / right.double().abs().max()
    assert error <= LOOSE[dtype], float(error)


def compare_linear(form: Format, rows: int, columns: int, outputs: int, dtype: torch.dtype) -> None:
    packed = random_packed(form, outputs, columns=columns).to(DEVICE)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    x = x.to(DEVICE, usable(dtype))
    right = x.double() @ packed.dequantise(dtype).double().T
    near(linear_packed(x, packed), right, dtype)


def compare_experts(
    up: Format, down: Format, sizes: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    """Sizes: rows, hidden, inner, experts, top."""
    rows, width, inner, experts, top = sizes
    g = torch.Generator().manual_seed(rows)
    index = torch.rand(rows, experts, generator=g).argsort(1)[:, :top].contiguous()
    weight = torch.rand(rows, top, generator=g)
    x = (torch.randn(rows, width, generator=g) / width).to(DEVICE, usable(dtype))
    gate_up = random_packed(up, experts, 2 * inner, columns=width, seed=1).to(DEVICE)
    back = random_packed(down, experts, width, columns=inner, seed=2).to(DEVICE)
    index, weight = index.to(DEVICE), weight.to(DEVICE)
    right = experts_sparse(x, index, weight, gate_up.dequantise(dtype), back.dequantise(dtype))
    near(experts_packed(x, index, weight, gate_up, back), right, dtype)


@here
@pytest.mark.parametrize("dtype", [torch.float32, rarely(torch.float16), torch.bfloat16])
@formats
@pytest.mark.usefixtures("one_block")
def test_a_product_equals_the_unpacked_one(form: Format, dtype: torch.dtype) -> None:
    """A wrong nibble, bit, scale or column; ragged rows and outputs."""
    compare_linear(form, 5, 256 if form in WIDE else 128, 37, dtype)


@here
@pytest.mark.parametrize(
    ("form", "columns"),
    [
        *((form, 96) for form in FORMATS if form not in WIDE and form is not gguf.NVFP4),
        (gguf.NVFP4, 192), (gguf.Q4_K, 768),  # more than one block in a row
        (gguf.Q5_0, 704), (Affine(4, 128), 704), (Float4(16), 704),  # the experts' inner width
        (gguf.Q8_0, 2112),  # the MLP's
        (Affine(4, 64), 36), (Float8(), 35),  # shorter than a step
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)  # fmt: skip
@pytest.mark.usefixtures("one_block")
@pytest.mark.fault("Q 9", "Q 10")
def test_ragged_and_released_widths(form: Format, columns: int) -> None:
    """A last step or group that is cut short, and every later step of a row."""
    assert decodes(form, columns)
    compare_linear(form, 1, columns, 17, torch.float32)


@here
@pytest.mark.parametrize("dtype", [rarely(torch.float32), torch.float16])
@pytest.mark.parametrize(
    ("up", "down"),
    [
        (gguf.Q4_K, gguf.Q5_0),
        (gguf.Q6_K, gguf.Q8_0),
        (gguf.Q8_0, Affine(4, 32)),
        (Affine(8, 64), Affine(4, 32)),
        (Float4(16), Float4(16)),
        (Float4(32), Float8()),
        (Float8(), gguf.Q5_1),
    ],
    ids=lambda form: form.name,
)
@pytest.mark.usefixtures("one_block")
def test_experts_equal_the_unpacked_ones(up: Format, down: Format, dtype: torch.dtype) -> None:
    """Formats of one file beside each other: the order of the columns changes between them."""
    compare_experts(up, down, (5, 256 if up in WIDE else 96, 32, 3, 2), dtype)


@here
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 64, 32, 6, 3),  # most experts without rows
        (17, 64, 32, 10, 8),
        (75, 64, 32, 3, 2),  # several blocks of an expert
        (300, 64, 32, 2, 1),  # those of a prefill
    ],
)
def test_ragged_experts(sizes: tuple[int, int, int, int, int]) -> None:
    """Every block size that rows choose."""
    compare_experts(gguf.Q5_0, Affine(4, 32), sizes, torch.float16)


@here
@pytest.mark.parametrize("tiles", sorted({*TILES, *TILES_32_BIT}, key=str))
def test_every_block_size(tiles: ExpertTiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that only a device with little room takes."""
    monkeypatch.setattr(kernels, "candidates", lambda *_: (tiles,))
    compare_experts(Float4(16), Float4(16), (37, 64, 32, 2, 1), torch.float32)


@here
@pytest.mark.parametrize(
    "form", [gguf.Q5_0, gguf.Q8_0, Affine(4, 32), Float4(16)], ids=lambda form: form.name
)
@pytest.mark.usefixtures("one_block")
def test_nothing_after_the_last_row_counts(form: Format) -> None:
    """A step that is cut short takes scales from memory after the weight: NaN here."""
    packed = random_packed(form, 3, columns=96)
    parts = {}
    for name, part in packed.parts.items():
        flat = part.view(torch.uint8).flatten()
        padded = torch.cat((flat, torch.full((256,), 0xFF, dtype=torch.uint8))).to(DEVICE)
        parts[name] = padded[: flat.numel()].view(part.dtype).view(part.shape)
    got = linear_packed(torch.ones(1, 96, device=DEVICE), replace(packed, parts=parts))
    near(got, packed.dequantise().sum(1)[None].to(DEVICE), torch.float32)


@here
@pytest.mark.usefixtures("one_block")
def test_modules_compute_by_the_kernels() -> None:
    """What the modules hand to the kernels: the choice is another test's."""
    linear = PackedLinear(Linear(128, 24), {"weight": gguf.Q8_0})
    linear.kernel = TRITON
    packed = random_packed(gguf.Q8_0, 24, columns=128).to(DEVICE)
    put(linear, "weight", packed)
    x = torch.ones(2, 128, device=DEVICE)
    near(linear(x), packed.linear(x), torch.float32)
    sizes = replace(TINY, num_experts=2, hidden_size=64, moe_intermediate_size=32)
    experts = PackedExperts(Experts(sizes), {"gate_up_proj": Float8(), "down_proj": Float4(16)})
    experts.kernel = TRITON
    gate_up = random_packed(Float8(), 2, 64, columns=64).to(DEVICE)
    down = random_packed(Float4(16), 2, 64, columns=32).to(DEVICE)
    put(experts, "gate_up_proj", gate_up)
    put(experts, "down_proj", down)
    index = torch.tensor([[1], [0]], device=DEVICE)
    x, weight = torch.full((2, 64), 0.01, device=DEVICE), torch.ones(2, 1, device=DEVICE)
    right = experts_sparse(x, index, weight, gate_up.dequantise(), down.dequantise())
    near(experts(x, index, weight), right, torch.float32)


@here
def test_strided_rows_and_no_rows() -> None:
    """Views that are not contiguous; nothing in, nothing out."""
    packed = random_packed(gguf.Q8_0, 24, columns=64).to(DEVICE)
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    wide = torch.cat((x, x + 1), 1)[:, :64]
    assert torch.equal(linear_packed(wide, packed), linear_packed(x, packed))
    assert linear_packed(x[:0], packed).shape == (0, 24)
    stack = random_packed(gguf.Q8_0, 2, 64, columns=64).to(DEVICE)
    back = random_packed(gguf.Q8_0, 2, 64, columns=32).to(DEVICE)
    none = torch.zeros(0, 1, dtype=torch.int64, device=DEVICE)
    assert experts_packed(x[:0], none, none.float(), stack, back).shape == (0, 64)


def test_blocks_follow_the_rows() -> None:
    """A canvas with the blocks of a prefill; nothing smaller to fall back to."""
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 16, 64, 4096):
            found = candidates(rows, dtype)
            sizes = [kernels.shared_bytes(tiles, dtype) for tiles in found]
            assert len(found) >= 2 or dtype == torch.float32
            assert sizes[-1] == min(sizes) <= 48 * 1024
    assert [candidates(rows, torch.bfloat16)[0].rows for rows in (1, 16, 64, 256)] == [
        16, 32, 64, 128,
    ]  # fmt: skip


def test_which_formats_have_a_kernel() -> None:
    """A format that would be unpacked wrongly in silence."""
    assert all(decodes(form, 768) for form in FORMATS)
    assert not decodes(gguf.IQ4_NL, 768)
    assert not decodes(Affine(3, 64), 768)
    assert not decodes(gguf.Q4_K, 704)
    assert not decodes(Float4(16), 705)
    assert not decodes(Float8(48), 705) and decodes(Float8(), 705)
    assert all(map(decodes, FORMATS)) and not decodes(gguf.IQ4_NL) and not decodes(Float8(48))
    assert not decodes(Integers(4, 32, 8, ordered=True))


def test_refusals() -> None:
    """What would be computed wrongly in silence is refused."""
    packed = random_packed(gguf.Q8_0, 8, columns=32)
    three = random_packed(Affine(3, 32), 8, columns=32)
    stack, back = (
        random_packed(gguf.Q8_0, 2, 64, columns=32),
        random_packed(gguf.Q8_0, 2, 32, columns=32),
    )
    x = torch.zeros(3, 32)
    index, weight = torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1)
    with pytest.raises(InvalidRequest, match="no kernel for affine int3"):
        linear_packed(x, three)
    with pytest.raises(InvalidRequest, match="no kernel for int4 with rows of 33"):
        kernels.linear_packed(x, replace(matrix(packed), kind="int4", columns=33))
    for wrong in (x[:, :16], x[0]):
        with pytest.raises(InvalidRequest, match="do not fit"):
            linear_packed(wrong, packed)
    with pytest.raises(InvalidRequest, match="do not fit"):
        experts_packed(x[:2], index, weight, stack, back)
    with pytest.raises(InvalidRequest, match="do not fit"):
        experts_packed(x, index, weight, back, stack)
    with pytest.raises(InvalidRequest, match="no backward"):
        linear_packed(x.clone().requires_grad_(), packed)
