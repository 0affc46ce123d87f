"""The Triton attention against the definition: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.kernels.e4m3 import E4M3
from dgemma.model.paged import PagedAttention
from tests.support.engines import tiny
from tests.support.interpreter import DEVICE, here, rarely, usable
from tests.support.paged import PagedCase, Span, paged_case

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.kernels import attention_paged_triton
from dgemma.kernels.attention_paged_triton import (
    FEW_PACKED,
    FEW_ROWS,
    NARROW,
    WIDE,
    AttentionTiles,
    attend_pages,
    count_spans,
)

pytestmark = pytest.mark.slow
LOOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MIXED = [Span(19, 0, True), Span(8, 130), Span(1, 64, True), Span(8, 0), Span(40, 30, True)]


def compare(case: PagedCase) -> Tensor:
    """The kernel's result, after it was found to be right."""
    got, rows, dtype = attend_pages(case.q, case.buffer, case.at), len(case.expected), case.q.dtype
    assert got.dtype == dtype and got.shape == case.q.shape and got.is_contiguous()
    close = {"atol": LOOSE[dtype], "rtol": LOOSE[dtype]}
    torch.testing.assert_close(got[:rows].double().cpu(), case.expected, **close)
    assert not got[rows:].any(), "rows that only fill up are zero"
    return got


def given(
    spans: Sequence[Span], heads: int, kv_heads: int, width: int, dtype: torch.dtype,
    window: int | None = None, large: float = 1.0, cache: torch.dtype | None = None,
) -> PagedCase:  # fmt: skip
    return paged_case(
        spans, heads, kv_heads, width, window=window, dtype=usable(dtype), device=DEVICE,
        large=large, cache=cache,
    )  # fmt: skip


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@here
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("spans", "window"),
    [
        *((MIXED, window) for window in (None, 9, 64)),
        *((MIXED[n : n + 1], 9) for n in range(3)),
        *(rarely(MIXED[n : n + 1], window) for n in range(3) for window in (None, 64)),
    ],
)
def test_equal_to_the_definition(spans: list[Span], window: int | None, dtype: torch.dtype) -> None:
    """Ragged lengths, one query, no prefix; NaN beside the keys shows a read out of bounds."""
    compare(given(spans, 4, 2, 24, dtype, window))


@here
@dtypes
@pytest.mark.parametrize(
    ("width", "spans"), [(24, MIXED), (24, MIXED[2:3]), (512, MIXED[2:3]), rarely(512, MIXED)]
)
def test_keys_in_e4m3(width: int, spans: list[Span], dtype: torch.dtype) -> None:
    """A code read as another number; small ones (subnormal in e4m3) lost; NaN beside the keys."""
    compare(given(spans, 4, 2, width, dtype, cache=E4M3))


@here
def test_every_code() -> None:
    """One key with one value: attention gives the value itself, NaN included."""
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    case = given([Span(1, 0)], 1, 1, 256, torch.float32, cache=E4M3)
    buffer = torch.zeros_like(case.buffer.view(torch.uint8))
    buffer[1, 0, case.at.slots[0]] = every
    got = attend_pages(case.q, buffer.view(E4M3), case.at)[0, 0]
    torch.testing.assert_close(got, every.view(E4M3).float(), rtol=0, atol=0, equal_nan=True)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 33, 64, *map(rarely, (2, 31, 65, 90))])
def test_window_borders(window: int, dtype: torch.dtype) -> None:
    """One key too many or too few, at borders of the blocks and of the keys there are."""
    compare(given([Span(40, 50, True), Span(8, 90)], 2, 1, 16, dtype, window))


@here
@pytest.mark.parametrize("dtype", [rarely(torch.float32), torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(16, 8, 256), (16, 2, 512)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_released_heads(
    heads: int, kv_heads: int, width: int, causal: bool, dtype: torch.dtype
) -> None:
    """The sizes that the model has, with the blocks chosen for them."""
    window = 30 if width == 256 else None
    compare(given([Span(9, 66, causal)], heads, kv_heads, width, dtype, window))


@here
@pytest.mark.parametrize("tiles", sorted({*FEW_ROWS, *FEW_PACKED, *NARROW, *WIDE}, key=str))
def test_every_size_of_blocks(tiles: AttentionTiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller devices take smaller blocks; none may be the first to be run by a user."""
    monkeypatch.setattr(attention_paged_triton, "candidates", lambda *_: (tiles,))
    compare(given(MIXED, 4, 2, 24, torch.float16, 20))


@here
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("spans", "window"), [(1, None), (1, 100), (9, 100), rarely(9, None)])
def test_spans_do_not_matter(
    spans: int, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in one span and in many; some spans lie wholly after a query or before its window."""
    monkeypatch.setattr(attention_paged_triton, "count_spans", lambda *_: spans)
    compare(given([Span(40, 220, True), Span(1, 259, True), Span(8, 250)], 2, 1, 16, dtype, window))


@here
def test_large_scores_stay_finite() -> None:
    """The running maximum: exponentials of the scores themselves overflow."""
    case = given([Span(6, 94)], 2, 1, 16, torch.float32, large=400.0)
    got = attend_pages(case.q, case.buffer, case.at)
    torch.testing.assert_close(got[:6].double().cpu(), case.expected, atol=1e-3, rtol=1e-3)


@here
def test_equal_bits_of_two_calls() -> None:
    """A sum in the order in which blocks happen to end."""
    case = given(MIXED, 4, 2, 24, torch.float16)
    first, second = (attend_pages(case.q, case.buffer, case.at) for _ in range(2))
    assert torch.equal(first, second)


def test_spans_fill_a_device() -> None:
    """As many programs as a device has processors, unless spans grow short."""
    assert count_spans(16, 1024, 132) == 8
    assert count_spans(256, 1024, 132) == 1
    assert count_spans(1, 20, 132) == 5
    assert count_spans(1, 4096, 132) == attention_paged_triton.MOST_SPANS


@pytest.mark.parametrize("fault", ["gradient", "dtype", "heads", "strided"])
def test_refusals(fault: str) -> None:
    """Computed wrongly, or without a gradient, and nobody told."""
    case = paged_case(MIXED, 4, 2, 24)
    q, buffer = case.q, case.buffer
    if fault == "gradient":
        q = q.clone().requires_grad_()
    if fault == "dtype":
        q = q.half()
    if fault == "heads":
        q = q[:, :3]
    if fault == "strided":
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(InvalidRequest):
        attend_pages(q, buffer, case.at)


@here
@torch.inference_mode()
def test_a_whole_network() -> None:
    """The path hands the kernel other pages, windows or rows than the plain form of it gets."""
    found = {}
    for name, kernel in (("plain", None), ("triton", attend_pages)):
        model = tiny(3).to(DEVICE)
        model.attention_path = PagedAttention(model.config, kernel)
        cache = model.new_cache(3, 250)
        prompts = [torch.arange(3, 3 + n, device=DEVICE) % 60 for n in (5, 20, 35)]
        first = [row.segment(ids) for row, ids in zip(cache.rows, prompts, strict=True)]
        batch = model.make_batch(first, cache.memory)
        hidden = batch.split(model(batch))
        for row, ids in zip(cache.rows, prompts, strict=True):
            row.length = row.stored = len(ids)
        canvas = torch.arange(8, device=DEVICE)
        second = [row.segment(canvas + k, k > 0) for k, row in enumerate(cache.rows)]
        batch = model.make_batch(second, cache.memory)
        found[name] = [*hidden, *batch.split(model(batch))]
    for ours, expected in zip(found["triton"], found["plain"], strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
