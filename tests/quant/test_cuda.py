"""What CUDA takes of packed weights, without CUDA: the choice, and 8-bit products on the CPU."""

from __future__ import annotations

import pytest
import torch

from dgemma.quant import choice, cuda, gguf_blocks
from dgemma.quant.choice import FLOAT8, TRITON, UNPACKED, choose_packed
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Packed
from tests.support.random_packed import random_packed

CUDA = torch.device("cuda", 0)
BF16 = torch.bfloat16


def test_the_choice_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for a format that it does not decode, or none where there is one."""
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    known = [gguf_blocks.Q4_K, gguf_blocks.Q5_0]
    kernel, reason = choose_packed("experts", known, [64], CUDA, torch.bfloat16, 0.0)
    assert kernel is TRITON and reason == "Q4_K, Q5_0: unpacked inside the product; cuda:0"
    kernel, reason = choose_packed(
        "linear", [*known, gguf_blocks.IQ4_NL], [64], CUDA, torch.bfloat16, 0.0
    )
    assert kernel is UNPACKED and "no kernel" in reason
    assert choose_packed("linear", known, [64], torch.device("cpu"), BF16, 0.0)[0] is not TRITON
    assert choose_packed("linear", known, [64], CUDA, torch.float32, 0.0)[0] is not TRITON
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert choose_packed("linear", known, [64], CUDA, torch.bfloat16, 0.0)[0] is UNPACKED


def test_products_of_8_bit_floats() -> None:
    """A scale of the wrong row or column; rows of zeros; x is rounded to 8 bit, no more."""
    packed = random_packed(Float8(), 48, columns=64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x[1], x[2] = 0, x[2] * 1000
    assert cuda.fits_scaled(x, packed)
    scale = x.abs().amax(1, keepdim=True).double() / 448
    rounded = (x.double() / scale.clamp(min=1e-12)).float().to(torch.float8_e4m3fn).double() * scale
    right = rounded @ packed.dequantise().double().T
    got = cuda.linear_scaled(x, packed)
    assert got.dtype == torch.bfloat16 and got.shape == (5, 48)
    assert ((got.double() - right).abs().amax(1) <= 1e-2 * right.abs().amax(1)).all()
    plain = x.double() @ packed.dequantise().double().T
    assert 0 < (got.double() - plain).norm() / plain.norm() < 0.05
    assert cuda.linear_scaled(x[:0], packed).shape == (0, 48)


def test_which_products_are_8_bit() -> None:
    """Other dtypes, sizes and scales go to the kernel that leaves x as it is."""
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    whole = random_packed(Float8(), 48, columns=64)
    assert cuda.fits_scaled(x, whole) and not cuda.fits_scaled(x.half(), whole)
    for other in (
        random_packed(Float8(), 40, columns=64),
        random_packed(Float8(), 48, columns=72),
        random_packed(Float8(32), 48, columns=64),
        random_packed(Float4(16), 48, columns=64),
        Packed(Float8(), 64, {**whole.parts, "scale": whole.parts["scale"].bfloat16()}),
    ):
        assert not cuda.fits_scaled(x, other)


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX 3090 has no such products; experts and other dtypes do not use them."""
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    bf16, form = BF16, Float8()
    for capability, eight in (((8, 6), False), ((8, 9), True), ((12, 0), True)):
        cuda.multiplies_float8.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        kernel, reason = choose_packed("linear", [form], [64], CUDA, bf16, 0.0)
        assert kernel is (FLOAT8 if eight else TRITON) and ("8-bit" in reason) == eight
        assert choose_packed("experts", [form, form], [64], CUDA, bf16, 0.0)[0] is TRITON
        assert choose_packed("linear", [form], [64], CUDA, torch.float16, 0.0)[0] is TRITON
        assert choose_packed("linear", [Float8(128)], [64], CUDA, bf16, 0.0)[0] is TRITON
    cuda.multiplies_float8.cache_clear()


def test_8_bit_where_sizes_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of odd sizes that the card refuses."""
    asked: list[int] = []
    monkeypatch.setattr(cuda, "linear_packed", lambda x, packed: asked.append(packed.shape[0]))
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    for rows in (48, 40):
        FLOAT8.linear(x, random_packed(Float8(), rows, columns=64))
    assert asked == [40]
