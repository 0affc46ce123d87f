"""Keys and values of encoded tokens: allocate, write, view. No policy.

Full layers keep everything, sliding layers only the tokens that the window of a later query can
reach. After the cached tokens there is room for the canvas of a denoising step while one product is
made: nothing cached is copied, and the cache does not change.

    PagedMemory   one memory of pages for any number of requests; its owner says which is whose
    Cache         a batch of requests with a memory of its own, for a model that is used by itself

Knows nothing about the use of keys, nor about requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dgemma.kernels.workspace import WORKSPACE
from dgemma.model.config import LayerType, ModelConfig
from dgemma.types import PAGE


class Store(Protocol):
    """Keys and values of one request in one layer, as a forward uses them."""

    keep: int | None
    """Most tokens before the next one that a query can see; None: all."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens: k, v [T, Hkv, hd] -> [Hkv, S, hd] of all that they may see; S >= T."""


class RowView(Protocol):
    """The cache of one request, as a forward uses it."""

    length: int
    """Tokens encoded so far; the next one's position."""
    max_length: int
    """Most tokens it will hold."""
    borders: Sequence[int]
    """Positions at which an encoding ended that is now done again."""

    @property
    def layers(self) -> Sequence[Store]:
        """One store a layer."""


class PagedMemory:
    """The keys and values of all requests of an engine, in pages of `PAGE` tokens.

    Memory is reserved at once; for a CPU a system gives a page of it at the first write.
    """

    def __init__(
        self, config: ModelConfig, full: int, sliding: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """
        Args:
            full, sliding: pages of the layers of either kind.
        """
        pages: dict[LayerType, int] = {"full_attention": full, "sliding_attention": sliding}
        self.max_length = config.max_position_embeddings
        self.keep = config.sliding_window - 1
        self.layer_types = config.layer_types
        self.buffers: list[Tensor] = []
        for layer, kind in enumerate(config.layer_types):
            shape = config.attention(layer)
            size = 2, shape.num_key_value_heads, pages[kind] * PAGE, shape.head_dim
            self.buffers.append(torch.empty(size, dtype=dtype, device=device))


class PagedRow:
    """One request's part of a `PagedMemory`, for one forward."""

    def __init__(
        self,
        memory: PagedMemory,
        length: int,
        full: Sequence[int],
        sliding: Sequence[int],
        borders: Sequence[int] = (),
    ) -> None:
        """
        Args:
            length: tokens encoded so far.
            full, sliding: the page of each block of the request; blocks out of the window's
                reach are not looked at.
            borders: see `RowView`.
        """
        self.length = length
        self.borders = borders
        self.max_length = min(memory.max_length, len(full) * PAGE)
        device = memory.buffers[0].device
        spans: dict[LayerType, Span] = {
            "full_attention": Span(length, None, full, device),
            "sliding_attention": Span(length, memory.keep, sliding, device),
        }
        self.layers = [
            PagedStore(buffer, spans[kind])
            for buffer, kind in zip(memory.buffers, memory.layer_types, strict=True)
        ]


class Span:
    """Where the positions of one request lie in the layers of one kind.

    Attributes:
        length: tokens encoded before this forward.
        keep: see `Store`.
    """

    def __init__(
        self, length: int, keep: int | None, pages: Sequence[int], device: torch.device
    ) -> None:
        self.length = length
        self.keep = keep
        self._pages = pages
        self._device = device
        self._read: tuple[int, slice | Tensor] | None = None

    def runs(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Slots [start, end) of positions `low` to `high` in order, side by side as far as so."""
        start = end = -1
        while low < high:
            page, offset = self._pages[low // PAGE], low % PAGE
            count = min(PAGE - offset, high - low)
            slot = page * PAGE + offset
            if slot != end:
                if end >= 0:
                    yield start, end
                start = slot
            end = slot + count
            low += count
        if end >= 0:
            yield start, end

    def seen(self, extra: int) -> slice | Tensor:
        """Slots of all that `extra` new tokens may see and of themselves; a slice if in one run."""
        if self._read is None or self._read[0] != extra:
            low = 0 if self.keep is None else max(0, self.length - self.keep)
            runs = list(self.runs(low, self.length + extra))
            if len(runs) == 1:
                self._read = extra, slice(*runs[0])
            else:
                slots = torch.cat([torch.arange(*run) for run in runs])
                self._read = extra, slots.to(self._device)
        return self._read[1]


class PagedStore:
    """One request in one layer of a `PagedMemory`. See `Store`.

    Keys that lie side by side are read in place, others are gathered first; the results are the
    same.
    """

    def __init__(self, buffer: Tensor, span: Span) -> None:
        self.keep = span.keep
        self._buffer = buffer  # [2, Hkv, slots, hd]
        self._span = span

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Store`. They are kept once the length says so: a canvas is written over."""
        span, done = self._span, 0
        for start, end in span.runs(span.length, span.length + k.shape[0]):
            piece = slice(done, done + end - start)
            self._buffer[0, :, start:end] = k[piece].transpose(0, 1)
            self._buffer[1, :, start:end] = v[piece].transpose(0, 1)
            done += end - start
        slots = span.seen(k.shape[0])
        if isinstance(slots, slice):
            return self._buffer[0, :, slots], self._buffer[1, :, slots]
        _, heads, _, width = self._buffer.shape
        size = 2, heads, len(slots), width
        gathered = WORKSPACE.take("gathered keys", 2 * heads, len(slots) * width, k).view(size)
        torch.index_select(self._buffer, 2, slots, out=gathered)
        return gathered[0], gathered[1]


class CacheRow:
    """One request of a model that is used by itself.

    Attributes:
        length: the position of the next token.
        stored: tokens encoded so far.
        max_length: most tokens.
    """

    def __init__(
        self, memory: PagedMemory, max_length: int, full: Sequence[int], sliding: Sequence[int]
    ) -> None:
        """`full` and `sliding` are the page of each block."""
        self.length = self.stored = 0
        self.max_length = max_length
        self._memory, self._full, self._sliding = memory, full, sliding

    def view(self) -> PagedRow:
        """For one forward."""
        view = PagedRow(self._memory, self.stored, self._full, self._sliding)
        view.length, view.max_length = self.length, self.max_length
        return view


class Cache:
    """The keys and values of a batch of requests without an engine; lengths may differ.

    The blocks of a row lie side by side. In sliding layers a page is used again as soon as the
    window has passed it.

    Attributes:
        memory: of all rows.
        rows: one a request.
    """

    def __init__(
        self, config: ModelConfig, rows: int, max_length: int, most_new: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        """`most_new`: most tokens of a row in one forward."""
        blocks = -(-max_length // PAGE)
        ring = min(blocks, -(-(config.sliding_window - 1 + most_new) // PAGE) + 1)
        self.memory = PagedMemory(config, rows * blocks, rows * ring, dtype, device)
        self.rows = [
            CacheRow(
                self.memory, max_length, range(row * blocks, (row + 1) * blocks),
                [row * ring + block % ring for block in range(blocks)],
            )
            for row in range(rows)
        ]  # fmt: skip
