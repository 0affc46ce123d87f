"""Packed queries and paged keys of many segments for tests of attention, and the definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.kernels.attention_paged import PagedSegments

PAGE = 64


@dataclass(frozen=True)
class Span:
    """Rows of one request: so many rows after so many stored keys, causal or not."""

    length: int
    stored: int
    causal: bool = False


@dataclass(frozen=True, eq=False)
class PagedCase:
    """Inputs of the kernels, and what follows from the definition of attention.

    Attributes:
        q: [N, H, hd]; the last rows only fill up.
        buffer: [2, Hkv, slots, hd], NaN wherever no segment has a key.
        at: the segments.
        expected: fp64 [rows of segments, H, hd].
    """

    q: Tensor
    buffer: Tensor
    at: PagedSegments
    expected: Tensor


def paged_case(
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    width: int,
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    large: float = 1.0,
    cache: torch.dtype | None = None,
) -> PagedCase:
    """Random numbers; pages lie in an order of their own. `cache`: the dtype of the buffer."""
    generator = torch.Generator().manual_seed(sum(s.length + 7 * s.stored for s in spans) + width)
    counts = [-(-(s.stored + s.length) // PAGE) for s in spans]
    order = iter((torch.randperm(sum(counts), generator=generator) + 1).tolist())
    pages = [[next(order) for _ in range(count)] for count in counts]
    buffer = torch.full((2, kv_heads, (sum(counts) + 1) * PAGE, width), float("nan"))
    rows = sum(s.length for s in spans) + 5
    q = torch.randn(rows, heads, width, generator=generator) * 2 * width**-0.5 * large
    q, buffer = q.to(dtype), buffer.to(cache or dtype)
    lows = [0 if window is None else max(0, s.stored - window + 1) for s in spans]
    slots, expected, first = [], [], 0
    for span, own in zip(spans, pages, strict=True):
        total = span.stored + span.length
        at = torch.tensor([own[k // PAGE] * PAGE + k % PAGE for k in range(total)])
        numbers = torch.randn(2, kv_heads, total, width, generator=generator)
        _bits(buffer)[:, :, at] = _bits(numbers.to(buffer.dtype))
        slots.append(at[span.stored :])
        rows_here = q[first : first + span.length]
        expected.append(
            defined(rows_here, _bits(buffer)[:, :, at].view(buffer.dtype), span, window)
        )
        first += span.length
    blocks = [own[low // PAGE :] for own, low in zip(pages, lows, strict=True)]
    most = max(map(len, blocks)) + 1
    table = torch.tensor([[*own, *[0] * (most - len(own))] for own in [*blocks, []]])
    whole = [*spans, Span(0, 0)]  # the last segment only fills up

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor([*values, 0], device=device)

    starts = [sum(s.length for s in spans[:k]) for k in range(len(spans))]
    return PagedCase(
        q.to(device),
        buffer.to(device),
        PagedSegments(
            slots=torch.cat([*slots, torch.arange(5)]).to(device),
            first=column(starts),
            length=column([s.length for s in spans]),
            stored=column([s.stored for s in spans]),
            low=column(lows),
            causal=column([s.causal for s in spans]),
            table=table.to(device),
            window=window,
            page=PAGE,
            longest=max(s.length for s in whole) + 3,
            reach=most * PAGE,
        ),
        torch.cat(expected),
    )


def _bits(x: Tensor) -> Tensor:
    """As integers of the same size: torch does not index every dtype."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def defined(q: Tensor, keys: Tensor, span: Span, window: int | None) -> Tensor:
    """Attention of one segment in fp64, with a mask, straight from the definition."""
    group = q.shape[1] // keys.shape[1]
    k, v = keys.double().repeat_interleave(group, 1)  # [H, S, hd]
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2)
    key = torch.arange(span.stored + span.length)[None, :]
    own = torch.arange(span.stored, span.stored + span.length)[:, None]
    if span.causal:
        hidden = key > own
        if window is not None:
            hidden |= key < own - window + 1
    else:
        hidden = torch.zeros(span.length, key.shape[1], dtype=torch.bool)
        if window is not None:
            hidden |= key < span.stored - window + 1
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)
