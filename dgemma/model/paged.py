"""The paged path: all rows of a forward at once, whatever requests and modes they belong to.

The number of kernels of a forward does not depend on the number of requests, and inputs of like
size have the same shapes and addresses, so a graph of kernels can be captured. It computes the same
as the reference path but for rounding, which may depend on the other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dgemma.kernels.attention_paged import (
    PagedSegments,
    attend_gathered,
    gather_indices,
    write_pages,
)
from dgemma.model.batch import ForwardBatch, bucket, upload
from dgemma.model.cache import PagedMemory, Segment
from dgemma.model.config import LayerType, ModelConfig
from dgemma.types import PAGE

ROWS, SEGMENTS = 64, 4
"""The least size of a batch in rows, and in segments."""

AttendPages = Callable[[Tensor, Tensor, PagedSegments], Tensor]
"""q [N, H, hd], buffer [2, Hkv, slots, hd] -> [N, H, hd]."""


class PagedAttention:
    """See `CachedPath`."""

    uniform = True

    def __init__(self, config: ModelConfig, kernel: AttendPages | None = None) -> None:
        """
        Args:
            kernel: a kernel that reads pages where they lie; None: the plain torch form.
        """
        self.window = config.sliding_window
        self.kernel = kernel

    def size(self, rows: int, like: Tensor) -> int:
        """See `CachedPath`."""
        return bucket(rows, ROWS)

    def find(
        self, segments: Sequence[Segment], rows: int, memory: PagedMemory
    ) -> Mapping[LayerType, object]:
        """See `CachedPath`."""
        found: dict[LayerType, object] = {}
        for kind in sorted(set(memory.layer_types)):
            at = self._at(kind, segments, rows, memory)
            found[kind] = gather_indices(at, rows) if self.kernel is None else at
        return found

    def _at(
        self, kind: LayerType, segments: Sequence[Segment], rows: int, memory: PagedMemory
    ) -> PagedSegments:
        sliding = kind == "sliding_attention"
        keep = memory.keep if sliding else None
        count = len(segments)
        lengths = [segment.length for segment in segments]
        lows = [segment.seen_from(keep) for segment in segments]
        blocks = [
            segment.pages(kind)[low // PAGE : -(-(segment.stored + segment.length) // PAGE)]
            for segment, low in zip(segments, lows, strict=True)
        ]
        width = bucket(max(map(len, blocks)), 4)
        size = bucket(count, SEGMENTS)
        host: dict[str, NDArray[np.int64]] = {
            name: np.zeros(size, dtype=np.int64)
            for name in ("first", "length", "stored", "low", "causal")
        }
        host["first"][:count] = [0, *accumulate(lengths[:-1])]
        host["length"][:count] = lengths
        host["stored"][:count] = [segment.stored for segment in segments]
        host["low"][:count] = lows
        host["causal"][:count] = [not segment.denoise for segment in segments]
        host["table"] = np.zeros((size, width), dtype=np.int64)
        for number, pages in enumerate(blocks):
            host["table"][number, : len(pages)] = pages
        slots = [s.slots(kind, s.stored, s.stored + s.length) for s in segments]
        # Rows that only fill up go to a page of their own, one slot after the other.
        spare = memory.filling[kind] + np.arange(rows - sum(lengths)) % PAGE
        host["slots"] = np.concatenate([*slots, spare])
        there = upload(f"pages of {kind}", host, memory.buffers[0].device)
        return PagedSegments(
            **there, window=self.window if sliding else None, page=PAGE,
            longest=bucket(max(lengths), 16), reach=width * PAGE,
        )  # fmt: skip

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """See `AttentionPath`."""
        assert batch.memory is not None
        kind, buffer = batch.memory.layer_types[layer], batch.memory.buffers[layer]
        at = batch.pages[kind]
        write_pages(buffer, at.slots, k, v)
        if self.kernel is None:
            return attend_gathered(q, buffer, at)
        return self.kernel(q, buffer, at)
