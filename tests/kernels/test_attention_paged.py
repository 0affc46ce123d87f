"""Paged attention in plain torch, against the definition."""

from __future__ import annotations

import pytest
import torch

from dgemma.kernels.attention_paged import attend_gathered, gather_indices, write_pages
from tests.support.paged import Span, paged_case

MIXED = [Span(19, 0, True), Span(8, 130), Span(1, 64, True), Span(8, 0), Span(70, 100, True)]


@pytest.mark.parametrize("window", [None, 1, 9, 64, 65, 1000])
@pytest.mark.parametrize("spans", [MIXED, MIXED[:1], MIXED[1:2]])
def test_equal_to_the_definition(spans: list[Span], window: int | None) -> None:
    """Another segment's keys, a window off by one, or a key that was never written (NaN)."""
    case = paged_case(spans, 4, 2, 24, window=window)
    got = attend_gathered(case.q, case.buffer, gather_indices(case.at, len(case.q)))
    rows = len(case.expected)
    torch.testing.assert_close(got[:rows].double(), case.expected, atol=2e-5, rtol=2e-5)


def test_writing_pages() -> None:
    """Keys at the place of values, or heads mixed up."""
    case = paged_case(MIXED, 4, 2, 24)
    k, v = torch.randn(2, len(case.q), 2, 24)
    write_pages(case.buffer, case.at.slots, k, v)
    assert torch.equal(case.buffer[0][:, case.at.slots], k.transpose(0, 1))
    assert torch.equal(case.buffer[1][:, case.at.slots], v.transpose(0, 1))
