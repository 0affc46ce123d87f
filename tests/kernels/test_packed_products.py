"""Products of 8-bit and of 4-bit weights against fp32 products of the same numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from dgemma.kernels.experts import experts_sparse
from dgemma.kernels.int4 import Int4Matrix
from dgemma.kernels.int8 import (
    Int8Matrix,
    experts_8bit,
    has_int8,
    linear_8bit,
    quantise_channels,
    quantise_rows,
)

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_int8(CPU)[0], reason=has_int8(CPU)[1])
SIZES = ((704, 352), (352, 704), (64, 1408), (96, 2112), (2112, 96), (40, 24))
"""Rows and columns; the last one has halves of K that no power of two but 4 divides."""

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def error(got: Tensor, right: Tensor) -> float:
    """The norm of the difference over the norm."""
    return float((got.float() - right).norm() / right.norm())


def int8_matrix(rows: int, columns: int, seed: int = 0) -> tuple[Int8Matrix, Tensor]:
    """Weights, and the numbers that they mean."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    scale = (torch.rand(rows, generator=generator) + 0.5) / 127 / columns**0.5
    return Int8Matrix(codes, scale), codes * scale[:, None]


def int4_matrix(
    rows: int, columns: int, group: int = 32, kind: str = "affine", seed: int = 0
) -> tuple[Int4Matrix, Tensor]:
    """Weights of random codes, scales and biases, and the numbers that they mean."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    groups = -(-columns // group)
    scale = (torch.rand(rows, groups, generator=generator) + 0.5) / 8 / columns**0.5
    bias = {
        "affine": -scale * (7 + torch.rand(rows, groups, generator=generator)),
        "symmetric": -8 * scale,
        "negative": 15 * scale,
        "e2m1": None,
    }[kind]
    if kind == "negative":
        scale = -scale
    wide, places = scale.repeat_interleave(group, 1)[:, :columns], codes.long()
    if bias is None:
        numbers = E2M1[places] * wide
    else:
        numbers = codes * wide + bias.repeat_interleave(group, 1)[:, :columns]
    return Int4Matrix(codes, scale, bias, group), numbers


@pytest.mark.parametrize("rows", [1, 3, 16, 64])
@pytest.mark.parametrize(("out", "columns"), SIZES)
@pytest.mark.fault("Q 9", "Q 10")
def test_int8_rounds_nothing_but_the_rows(out: int, columns: int, rows: int) -> None:
    """The product equals that of the rounded rows in fp32, and the rows are rounded to 1 in 127."""
    weight, numbers = int8_matrix(out, columns)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 3
    codes, scale = quantise_rows(x)
    rounded = (codes.float() - 128) * scale
    assert (x - rounded).abs().max() <= 0.501 * scale.max()
    assert codes.min() >= 1
    assert error(linear_8bit(x, weight), rounded @ numbers.T) < 2e-6
    assert error(linear_8bit(x.bfloat16(), weight), x.bfloat16().float() @ numbers.T) < 0.015


@pytest.mark.parametrize("kind", ["affine", "symmetric", "negative", "e2m1"])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize(("out", "columns"), SIZES)
def test_int4_adds_little_to_the_error_of_4_bits(
    out: int, columns: int, group: int, kind: str
) -> None:
    """Steps of groups become small integers. Groups cut short, groups across the halves of K,
    negative scales.

    Rounding to 4 bits has errors of 8 to 12 %; one code unpacked wrongly would give more than 5.
    """
    weight, numbers = int4_matrix(out, columns, group, kind)
    ours = weight.unpacked().T * weight.scale[:, None]
    assert error(ours, numbers) < 0.05
    x = torch.randn(16, columns, generator=torch.Generator().manual_seed(1))
    codes, scale = quantise_rows(x)
    exact = ((codes.float() - 128) * scale) @ ours.T
    assert error(linear_8bit(x, weight), exact) < 2e-6


def test_the_range_of_int8_is_kept() -> None:
    """A step that is rounded up may carry the last code beyond 127, where it would wrap around."""
    scale = torch.linspace(1, 3, 64 * 22).view(64, 22)
    for bias in (-7.5 * scale, 0 * scale, -15 * scale):
        codes = torch.tensor([0, 15], dtype=torch.uint8).repeat(64, 352)
        weight = Int4Matrix(codes, scale, bias, 32)
        ours = weight.unpacked().T * weight.scale[:, None]
        wide = scale.repeat_interleave(32, 1)
        numbers = codes * wide + bias.repeat_interleave(32, 1)
        assert (ours - numbers).abs().max() < 0.06 * numbers.abs().max()


@pytest.mark.parametrize("rows", [1, 3, 16, 64])
def test_experts_of_both_kinds(rows: int) -> None:
    """Some experts get no row; the rows' scales and the experts' weights meet in one sum."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 96, generator=generator) * torch.rand(rows, 1, generator=generator) * 9
    weight, index = torch.rand(rows, 6, generator=generator).topk(2, dim=-1)
    for make in (int8_matrix, int4_matrix):
        gate_up = [make(128, 96, seed=e) for e in range(6)]  # type: ignore[operator]
        down = [make(96, 64, seed=9 + e) for e in range(6)]  # type: ignore[operator]
        plain = [
            torch.stack([w.unpacked().T * w.scale[:, None] if make is int4_matrix else n
                         for w, n in stack])
            for stack in (gate_up, down)
        ]  # fmt: skip
        right = experts_sparse(x, index, weight, *plain)
        stacks = [w for w, _ in gate_up], [w for w, _ in down]
        for dtype, most in ((torch.float32, 0.03), (torch.bfloat16, 0.03), (torch.float16, 0.03)):
            got = experts_8bit(x.to(dtype), index, weight, *stacks)
            assert got.dtype == dtype and error(got, right) < most


def test_a_row_does_not_depend_on_the_others() -> None:
    """Sums of integers are exact, so a request alone and in a batch gets the same bits."""
    for weight, _ in (int8_matrix(352, 704), int4_matrix(352, 704)):
        x = torch.randn(40, 704, generator=torch.Generator().manual_seed(2)).bfloat16()
        together = linear_8bit(x, weight)
        assert torch.equal(together[7:8], linear_8bit(x[7:8], weight))
        assert torch.equal(together[:20], linear_8bit(x[:20], weight))


def test_weights_are_rounded_by_their_channel() -> None:
    """Piece by piece, as they are unpacked; a channel of zeros stays one."""
    w = torch.randn(300, 2112, generator=torch.Generator().manual_seed(3))
    w[5] = 0
    asked: list[tuple[int, int]] = []

    def rows(low: int, high: int) -> Tensor:
        asked.append((low, high))
        return w[low:high].clone()

    found = quantise_channels(rows, (300, 2112))
    assert len(asked) > 2 and asked[0][0] == 0 and asked[-1][1] == 300
    torch.testing.assert_close(found.scale, w.abs().amax(-1).clamp(min=1e-30) / 127)
    x = torch.eye(300, 2112) * 127  # exact in 8 bit
    back = linear_8bit(x, found)[:, :].T / 127
    assert (back - w[:, :300]).abs().max() <= 0.51 * found.scale.max()


def test_bytes_are_counted() -> None:
    """One byte for a number of int8, with oneDNN's own; 4.5 bits in groups of 32."""
    eight, _ = int8_matrix(704, 2112)
    assert 1 <= eight.nbytes / (704 * 2112) < 1.02
    four, _ = int4_matrix(704, 2112)
    assert 4.5 <= four.nbytes * 8 / (704 * 2112) < 4.6


def test_threads_have_their_own_buffers() -> None:
    """Two models in two threads unpack at the same time."""
    pairs = [int4_matrix(704, 1408, seed=s) for s in (0, 1)]
    x = torch.randn(16, 1408, generator=torch.Generator().manual_seed(4))
    right = [linear_8bit(x, weight) for weight, _ in pairs]
    wrong = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(linear_8bit(x, pairs[number][0]), right[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI sums of pairs overflow 16 bit in silence; other devices have other kernels."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert has_int8(CPU) == (True, "VNNI")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert has_int8(CPU) == (False, "this processor has no VNNI")
    assert has_int8(torch.device("cuda")) == (False, "cuda")
