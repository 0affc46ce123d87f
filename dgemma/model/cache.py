"""Keys and values of encoded tokens, in pages of `PAGE` tokens, and where a request's lie.

Full layers keep every token, sliding layers those that the window of a later query can reach. A
canvas that is being denoised lies after the encoded tokens and is written over at the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.errors import InvalidRequest
from dgemma.model.config import LayerType, ModelConfig
from dgemma.types import PAGE

CacheDtypes = Mapping[LayerType, torch.dtype]
"""Of the keys and values in layers of each kind."""


def cache_dtypes(dtype: torch.dtype, full: torch.dtype | None = None) -> CacheDtypes:
    """One dtype for all layers, or another one for the full layers."""
    return {"full_attention": full or dtype, "sliding_attention": dtype}


class PagedMemory:
    """The keys and values of any number of requests.

    Memory is reserved at once; for a CPU a system gives a page of it at the first write. One page
    more than asked for takes the keys of rows that only fill a batch up.

    Attributes:
        layer_types: the kind of each layer.
        buffers: one a layer, [2, Hkv, slots, hd]: keys and values.
        keep: most tokens before a query that a sliding layer sees.
        filling: for each kind of layer the first slot of the page that nobody owns.
    """

    def __init__(
        self, config: ModelConfig, full: int, sliding: int, dtypes: CacheDtypes,
        device: torch.device,
    ) -> None:  # fmt: skip
        """
        Args:
            full, sliding: pages of the layers of either kind.
        """
        pages: dict[LayerType, int] = {"full_attention": full, "sliding_attention": sliding}
        self.keep = config.sliding_window - 1
        self.layer_types = config.layer_types
        self.filling = {kind: count * PAGE for kind, count in pages.items()}
        self.buffers = []
        for layer, kind in enumerate(config.layer_types):
            shape = config.attention(layer)
            size = 2, shape.num_key_value_heads, (pages[kind] + 1) * PAGE, shape.head_dim
            self.buffers.append(torch.empty(size, dtype=dtypes[kind], device=device))

    def copy(self, kind: LayerType, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of a page to another page, in all layers of a kind."""
        low, to = source * PAGE, target * PAGE
        for layer, buffer in zip(self.layer_types, self.buffers, strict=True):
            if layer == kind:
                buffer[:, :, to : to + count] = buffer[:, :, low : low + count]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Consecutive tokens of one request, all in one mode.

    Attributes:
        ids: of the tokens; on the device as int64 [T], or on the host.
        position: of the first token.
        stored: tokens of the request that are encoded before.
        full, sliding: the page of each block of the request; blocks out of the window's reach are
            not looked at.
        denoise: a canvas (reads the cache) or prompt tokens (appended to it).
        soft: [T, D], the belief of the last step about a canvas; None: exactly zero.
        borders: positions at which an encoding ended that is now done again.
        embeddings: (first token, [n, D]) for tokens that do not take their ids' embeddings.
    """

    ids: Sequence[int] | Tensor
    position: int
    stored: int
    full: Sequence[int]
    sliding: Sequence[int]
    denoise: bool = False
    soft: Tensor | None = None
    borders: Sequence[int] = ()
    embeddings: tuple[tuple[int, Tensor], ...] = ()

    @property
    def length(self) -> int:
        """How many tokens."""
        return len(self.ids)

    def pages(self, kind: LayerType) -> Sequence[int]:
        """The page of each block in the layers of one kind."""
        return self.full if kind == "full_attention" else self.sliding

    def slots(self, kind: LayerType, low: int, high: int) -> NDArray[np.int64]:
        """The slots of the request's tokens low..high-1."""
        first = low // PAGE
        pages = np.asarray(self.pages(kind)[first : -(-high // PAGE)], dtype=np.int64)
        at = np.arange(low - first * PAGE, high - first * PAGE)
        return pages[at // PAGE] * PAGE + at % PAGE

    def seen_from(self, keep: int | None) -> int:
        """The first token that any of these may see, if a query sees `keep` tokens before it."""
        return 0 if keep is None else max(0, self.stored - keep)


class CacheRow:
    """The pages of one request of a model that is used by itself.

    Attributes:
        length: the position of the next token.
        stored: tokens encoded so far.
        full, sliding: the page of each block.
        max_length: most tokens.
    """

    def __init__(self, max_length: int, full: Sequence[int], sliding: Sequence[int]) -> None:
        self.length = 0
        self.stored = 0
        self.full = full
        self.sliding = sliding
        self.max_length = max_length

    def segment(self, ids: Tensor, denoise: bool = False, soft: Tensor | None = None) -> Segment:
        """The next tokens, int64 [T].

        Raises:
            InvalidRequest: they do not fit.
        """
        end = self.length + len(ids)
        if end > self.max_length:
            raise InvalidRequest(f"{end} tokens do not fit a cache of {self.max_length}")
        return Segment(ids, self.length, self.stored, self.full, self.sliding, denoise, soft)

    def truncate(self, count: int) -> None:
        """Take the last tokens back; the next ones are written over them.

        Args:
            count: of the tokens, all of which came with the last forward. The pages of sliding
                layers have room for that: no token before them has been written over.
        """
        self.length -= count
        self.stored -= count


class Cache:
    """The keys and values of a batch of requests without an engine; lengths may differ.

    The blocks of a row lie side by side. In sliding layers a page is used again as soon as the
    window has passed it.

    Attributes:
        memory: of all rows.
        rows: one a request. Rows may be taken out and put together at will.
    """

    def __init__(
        self, config: ModelConfig, rows: int, max_length: int, most_new: int, dtypes: CacheDtypes,
        device: torch.device,
    ) -> None:  # fmt: skip
        """
        Args:
            most_new: most tokens of a row in one forward.
        """
        blocks = -(-max_length // PAGE)
        ring = min(blocks, -(-(config.sliding_window - 1 + most_new) // PAGE) + 1)
        self.memory = PagedMemory(config, rows * blocks, rows * ring, dtypes, device)
        self.rows = [
            CacheRow(
                max_length,
                range(row * blocks, (row + 1) * blocks),
                [row * ring + block % ring for block in range(blocks)],
            )
            for row in range(rows)
        ]
