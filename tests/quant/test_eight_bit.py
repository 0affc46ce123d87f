"""Plain weights packed in 8 bit while they are loaded."""

from __future__ import annotations

import pytest
import torch

from dgemma.quant.eight_bit import EIGHT_BIT, GROUP, pack_eight_bit

SHAPES = [(3, 64), (5, 352), (2, 704), (4, 2112), (2, 3, 96), (2, 10), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 3.0, -3.0])
def test_nearest_codes(shape: tuple[int, ...], offset: float) -> None:
    """Within a step of the group's own range, of the last group too; in as many bytes as said."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + offset
    packed = pack_eight_bit(weight)
    assert packed.shape == shape and packed.format == EIGHT_BIT
    like = pack_eight_bit(weight.to("meta"))
    assert {n: (p.shape, p.dtype) for n, p in packed.parts.items()} == {
        n: (p.shape, p.dtype) for n, p in like.parts.items()
    }
    numbers = packed.dequantise()
    for low in range(0, shape[-1], GROUP):
        group, found = weight[..., low : low + GROUP], numbers[..., low : low + GROUP]
        width = group.amax(-1, keepdim=True) - group.amin(-1, keepdim=True)
        # Half a step, and what the bias loses in bf16.
        limit = 0.51 * width * (1 + 2**-7) / 255 + group.abs().amax(-1, keepdim=True) * 2**-8
        assert bool(((found - group).abs() <= limit).all())


def test_all_alike() -> None:
    """A group without a range has no step to divide by."""
    assert torch.equal(pack_eight_bit(torch.zeros(2, 64)).dequantise(), torch.zeros(2, 64))
    assert torch.equal(
        pack_eight_bit(torch.full((2, 64), 0.5)).dequantise(), torch.full((2, 64), 0.5)
    )


def test_error_of_normal_numbers() -> None:
    """The reason to prefer integers in groups over e4m3 a row: a fifth of its error."""
    weight = torch.randn(64, 2816, generator=torch.Generator().manual_seed(2)) * 0.02
    error = (pack_eight_bit(weight).dequantise() - weight).norm() / weight.norm()
    scale = weight.abs().amax(-1, keepdim=True) / 448
    other = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    assert error < 0.006 < 0.2 * 1.3 * (other - weight).norm() / weight.norm()
