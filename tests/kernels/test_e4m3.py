"""Keys and values in 8 bits: what is written, and what is read back."""

from __future__ import annotations

import pytest
import torch

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention_paged import attend_gathered, gather_indices, write_pages
from dgemma.kernels.e4m3 import BLOCK, E4M3, choose_cache, codes, numbers, stored
from tests.support.paged import Span, paged_case

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MIXED = [Span(19, 0, True), Span(8, 130), Span(1, 64, True), Span(70, 100, True)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_codes(dtype: torch.dtype) -> None:
    """A table with the two of a pair exchanged, a sign lost, or NaN that becomes a number."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.uint8)
    found = numbers(every.view(2, 1, 128, 512), torch.empty(0, dtype=dtype))
    expected = every.view(E4M3).to(dtype).view(2, 1, 128, 512)
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().any()
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 2, BLOCK // 64, 130), (4, 2), (2, 1, 0, 8)])
def test_parts_of_a_buffer(shape: tuple[int, ...]) -> None:
    """Heads lie apart in memory, and long prompts are looked up in blocks."""
    whole = torch.randn(*shape[:-2], shape[-2] + 9, shape[-1]).to(E4M3)
    part = codes(whole)[..., 4 : 4 + shape[-2], :]
    found = numbers(part, torch.empty(0))
    assert torch.equal(found, whole[..., 4 : 4 + shape[-2], :].to(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_too_large_becomes_the_largest(dtype: torch.dtype) -> None:
    """One key that is NaN makes every later token NaN. A real NaN stays: it shows a fault."""
    x = torch.tensor([1e4, -1e4, 448, 460, 470, float("inf"), -float("inf"), float("nan"), 0.01])
    x = x.to(dtype)
    found = numbers(stored(x[None], torch.empty(0, dtype=E4M3)).view(1, 1, 1, 9)[..., :8], x)
    assert found.flatten()[:7].tolist() == [448, -448, 448, 448, 448, 448, -448]
    assert found.flatten()[7].isnan()
    assert stored(x, x) is x and codes(x) is x


def test_the_reference_of_pages() -> None:
    """The paged form over e4m3 gives what the definition gives over the rounded numbers."""
    case = paged_case(MIXED, 4, 2, 24, cache=E4M3)
    got = attend_gathered(case.q, case.buffer, gather_indices(case.at, len(case.q)))
    close = {"atol": 2e-5, "rtol": 2e-5}
    torch.testing.assert_close(got[: len(case.expected)].double(), case.expected, **close)
    k, v = torch.randn(2, len(case.q), 2, 24) * 300
    write_pages(case.buffer, case.at.slots, k, v)
    held = codes(case.buffer)[0][:, case.at.slots].view(E4M3).float()
    assert torch.equal(held, k.clamp(-448, 448).to(E4M3).float().transpose(0, 1))


def test_the_choice() -> None:
    """A name that nobody knows, or gradients through a rounding."""
    assert choose_cache(torch.bfloat16, "auto") == (torch.bfloat16, "auto: as the model")
    assert choose_cache(torch.bfloat16, "fp8")[0] == E4M3
    with pytest.raises(InvalidRequest, match="one of auto, fp8, got 'int8'"):
        choose_cache(torch.bfloat16, "int8")
    with pytest.raises(InvalidRequest, match="no gradients"):
        choose_cache(torch.bfloat16, "fp8", grad=True)
