"""One forward as a value: the rows of any number of requests, each row in either mode.

`BatchMaker` packs segments of requests into a `ForwardBatch`, which goes unchanged through the
network into attention. It must not know engines or canvases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.kernels.workspace import WORKSPACE
from dgemma.model.cache import PagedMemory, Segment
from dgemma.model.config import LayerType
from dgemma.model.layers import rotary_table

Rotary = tuple[Tensor, Tensor]
"""cos and sin, [N, 1, hd]."""


class AttentionPath(Protocol):
    """The way in which queries meet keys."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """q [N, H, hd], k and v [N, Hkv, hd] of the batch's rows -> [N, H, hd].

        Called once a layer, in order.
        """


class CachedPath(AttentionPath, Protocol):
    """A path that keeps keys and values in a `PagedMemory`.

    Attributes:
        uniform: whether a forward runs the same kernels whatever the segments are.
    """

    uniform: bool

    def size(self, rows: int, like: Tensor) -> int:
        """How many rows a batch of so many is filled up to; `like` has their dtype and device."""

    def find(
        self, segments: Sequence[Segment], rows: int, memory: PagedMemory
    ) -> Mapping[LayerType, Any]:
        """For each kind of layer the places of the keys, see `ForwardBatch.pages`."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """The input of one forward over N packed rows.

    Attributes:
        ids: int64 [N].
        positions: int64 [N].
        denoise: bool [N, 1], the mode of each row.
        soft: [M, D], the soft embeddings of the last M rows; None: no row is a canvas's.
        mixed: whether rows of prompts may be among these M.
        rotary: for each kind of layer, of the positions.
        attention: the path.
        embeddings: rows, int64 [E], and their embeddings [E, D] in place of those of the ids.
        memory: where keys and values are; None: the path keeps them itself (in training).
        segments: prompt tokens first, then canvases; further rows only fill up.
        rows: where the rows of each segment are, in the order in which the caller gave them.
        pages: for each kind of layer, what the path needs to find keys; made by the path.
    """

    ids: Tensor
    positions: Tensor
    denoise: Tensor
    soft: Tensor | None
    rotary: Mapping[LayerType, Rotary]
    attention: AttentionPath
    mixed: bool = False
    embeddings: tuple[Tensor, Tensor] | None = None
    memory: PagedMemory | None = None
    segments: tuple[Segment, ...] = ()
    rows: tuple[slice, ...] = ()
    pages: Mapping[LayerType, Any] = field(default_factory=dict)

    def split(self, hidden: Tensor) -> list[Tensor]:
        """[N, D] -> [T, D] of each segment, in the order in which the caller gave them."""
        return [hidden[rows] for rows in self.rows]


ROW_BUCKETS = 4
"""Sizes between one power of two and the next."""


def bucket(count: int, least: int) -> int:
    """The least size that holds `count`: few different sizes, each at most a quarter too large."""
    if count <= least:
        return least
    step = max(least, 1 << (count - 1).bit_length() - 1) // ROW_BUCKETS
    return -(-count // step) * step


def upload(
    name: str, arrays: Mapping[str, NDArray[np.int64]], device: torch.device
) -> dict[str, Tensor]:
    """Copy arrays of integers to the device, in one piece and to where the last ones were.

    Inputs of equal shapes lie at equal addresses, as a captured graph of kernels needs them.
    """
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays.values()]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    there = WORKSPACE.take(name, 1, len(flat), torch.empty(0, device=device), torch.int64)[0]
    there.copy_(flat, non_blocking=True)
    parts = torch.split(there, [array.size for array in arrays.values()])
    return {key: part.view(a.shape) for (key, a), part in zip(arrays.items(), parts, strict=True)}


class BatchMaker:
    """Packs segments for one network."""

    def __init__(
        self, frequencies: Mapping[LayerType, Tensor], path: CachedPath, like: Tensor
    ) -> None:
        """
        Args:
            frequencies: for each kind of layer fp32 [hd / 2], see `rotary_table`.
            path: how queries meet keys.
            like: of the network's dtype and device, [.., D].
        """
        self.frequencies = frequencies
        self.path = path
        self.like = like

    def make(self, segments: Sequence[Segment], memory: PagedMemory) -> ForwardBatch:
        """One forward over these segments.

        A sequence's prompt tokens and its canvas may be in one batch; the canvas sees them.
        """
        order = sorted(range(len(segments)), key=lambda number: segments[number].denoise)
        packed = tuple(segments[number] for number in order)
        ends = [0, *accumulate(segment.length for segment in packed)]
        found = {number: slice(*ends[at : at + 2]) for at, number in enumerate(order)}
        size = self.path.size(ends[-1], self.like)
        start = sum(segment.length for segment in packed if not segment.denoise)
        host = {name: np.zeros(size, dtype=np.int64) for name in ("ids", "positions", "denoise")}
        host["denoise"][start : ends[-1]] = 1
        for low, high, segment in zip(ends, ends[1:], packed, strict=False):
            host["positions"][low:high] = np.arange(high - low) + segment.position
            if not isinstance(segment.ids, Tensor):
                host["ids"][low:high] = segment.ids
        there = upload("batch", host, self.like.device)
        spans = list(zip(ends, ends[1:], packed, strict=False))
        pieces = [s.ids if isinstance(s.ids, Tensor) else there["ids"][a:b] for a, b, s in spans]
        ids = _joined("ids", [*pieces, there["ids"][ends[-1] :]], self.path.uniform)
        return ForwardBatch(
            ids=ids,
            positions=there["positions"],
            denoise=there["denoise"].bool()[:, None],
            soft=self._soft(packed, 0 if self.path.uniform else start, size),
            mixed=self.path.uniform,
            rotary={
                kind: rotary_table(frequencies, there["positions"], self.like.dtype)
                for kind, frequencies in self.frequencies.items()
            },
            attention=self.path,
            memory=memory,
            segments=packed,
            rows=tuple(found[number] for number in range(len(segments))),
            pages=self.path.find(packed, size, memory),
            embeddings=_embeddings(spans),
        )

    def _soft(self, packed: Sequence[Segment], start: int, size: int) -> Tensor | None:
        """Soft embeddings of the rows from `start` on; those of all but canvases are zero."""
        if start == size or not (self.path.uniform or any(s.denoise for s in packed)):
            return None
        width = self.like.shape[-1]
        pieces, done = list[Tensor | int](), 0
        for segment in packed:
            if start <= done:
                pieces.append(segment.length if segment.soft is None else segment.soft)
            done += segment.length
        pieces += [size - done] if size > done else []
        zeros = max((piece for piece in pieces if isinstance(piece, int)), default=0)
        none = WORKSPACE.take("no soft embedding", zeros, width, self.like).fill_(0)
        rows = [none[:piece] if isinstance(piece, int) else piece for piece in pieces]
        return _joined("soft embedding", rows, self.path.uniform)


def _joined(name: str, pieces: Sequence[Tensor], keep: bool) -> Tensor:
    """The rows of all pieces; if `keep`, where those of the last batch were."""
    filled = [piece for piece in pieces if len(piece)]
    if len(filled) == 1 and not keep:
        return filled[0]
    size, like = sum(len(piece) for piece in filled), filled[0]
    width = like.numel() // len(like)
    out = WORKSPACE.take(name, size, width, like).view(size, *like.shape[1:])
    return torch.cat(filled, out=out)


def _embeddings(spans: Sequence[tuple[int, int, Segment]]) -> tuple[Tensor, Tensor] | None:
    """The rows whose embedding is given, and these embeddings."""
    given = [(low + at, rows) for low, _, segment in spans for at, rows in segment.embeddings]
    if not given:
        return None
    where = np.concatenate([np.arange(at, at + len(rows)) for at, rows in given])
    rows = torch.cat([rows for _, rows in given])
    return torch.from_numpy(where).to(rows.device), rows
