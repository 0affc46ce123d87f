"""The Triton kernels of the vocabulary operation: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

import pytest
import torch

from dgemma.kernels.controls import Bias, Controls, Masks
from tests.support.heads import head_of
from tests.support.interpreter import DEVICE, here, rarely, usable
from tests.support.masks import packed
from tests.support.random_vocabulary import hidden_rows, make, random_keys

pytest.importorskip("triton", reason="the kernels need the triton package")
pytestmark = pytest.mark.slow


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 5), (1, 2700), (20, 300), *(rarely(*pair) for pair in ((1, 300), (20, 5), (20, 2700)))],
)
def test_equal_to_the_plain_tiles(size: int, count: int, dtype: torch.dtype) -> None:
    """Sums, peak, best id, weights and sample, over several tiles and a last one cut short."""
    words = make(size, 4.0, usable(dtype))
    readings = []
    for kernel in ("tiles", "triton"):
        bound = head_of(words.table.weight.to(DEVICE), kernel)
        bound.tiles.tile_elements = 5 * 256 * max(count, 16)
        given = hidden_rows(count).to(DEVICE, dtype), torch.linspace(0.4, 0.8, count).to(DEVICE)
        mask = packed([range(1, size, 2)], size, torch.tensor([0] + [-1] * (count - 1)))
        mask = Masks(mask.table.to(DEVICE), mask.index.to(DEVICE))
        controls = Controls(suppress_ids=(3, 4), masks=mask)
        readings.append(bound.read(*given, random_keys(count).to(DEVICE), controls))
    a, b = readings
    assert torch.equal(a.argmax, b.argmax) and (a.sample == b.sample).float().mean() > 0.94
    torch.testing.assert_close(a.entropy, b.entropy, atol=1e-5, rtol=1e-5)
    loose = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(a.soft, b.soft, atol=loose, rtol=loose)


@here
def test_bias_takes_the_plain_epilogue() -> None:
    """A bias acts behind the cap, so raw products cannot carry it."""
    words = make(600, 4.0)
    bound = head_of(words.table.weight.to(DEVICE), "triton")
    bias = Bias(*(torch.tensor([x]).to(DEVICE) for x in (2, 77, 60.0)))
    got = bound.read(
        hidden_rows(4).to(DEVICE), torch.ones(4).to(DEVICE), random_keys(4).to(DEVICE),
        Controls(bias=bias),
    )  # fmt: skip
    assert got.argmax[2] == 77 and got.sample[2] == 77 and got.argmax[1] != 77
