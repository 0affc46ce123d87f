"""Keys and values of encoded tokens: allocate, write, view. No policy.

Full layers keep everything, sliding layers only what the window of a later query can reach.
Buffers are contiguous and have room behind the cached tokens, where the canvas of a denoising step
is laid for the time of one product: nothing cached is copied, and the cache does not change.
Knows nothing about what is computed with keys, nor about requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.model.config import ModelConfig

GROWTH = 256
"""Buffers grow to a multiple of this many tokens."""


class LayerStore:
    """Keys and values of one request in one layer.

    Attributes:
        keep: most tokens that must survive (window - 1), None on full layers.
        start: position of the first token held.
        used: how many tokens are held.
    """

    def __init__(
        self, heads: int, width: int, keep: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keep = keep
        self.start = 0
        self.used = 0
        # [2, Hkv, capacity, hd]: keys and values
        self.buffer = torch.empty(2, heads, 0, width, dtype=dtype, device=device)

    def _reserve(self, extra: int) -> None:
        """Make room for `extra` tokens behind the used ones; out-of-window tokens may go."""
        if self.used + extra <= self.buffer.shape[2]:
            return
        kept = self.used if self.keep is None else min(self.used, self.keep)
        drop = self.used - kept
        if kept + extra <= self.buffer.shape[2] and drop >= kept:
            self.buffer[:, :, :kept] = self.buffer[:, :, drop : self.used]
        else:
            need = kept + extra if self.keep is None else kept + max(extra, kept)
            if self.keep is None and self.buffer.shape[2]:
                need = max(need, min(2 * self.buffer.shape[2], self.buffer.shape[2] + 8192))
            size = -(-need // GROWTH) * GROWTH
            _, heads, _, width = self.buffer.shape
            grown = self.buffer.new_empty(2, heads, size, width)
            grown[:, :, :kept] = self.buffer[:, :, drop : self.used]
            self.buffer = grown
        self.start += drop
        self.used = kept

    def _lay(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.used + k.shape[0]
        self.buffer[0, :, self.used : end] = k.transpose(0, 1)
        self.buffer[1, :, self.used : end] = v.transpose(0, 1)
        return self.buffer[0, :, :end], self.buffer[1, :, :end]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens: k, v [T, Hkv, hd] -> views [Hkv, S, hd] of all that is held; S >= T."""
        self._reserve(k.shape[0])
        views = self._lay(k, v)
        self.used += k.shape[0]
        return views

    def with_canvas(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Views [Hkv, S + C, hd] of what a canvas may see and the canvas; nothing is kept."""
        self._reserve(k.shape[0])
        keys, values = self._lay(k, v)
        low = 0 if self.keep is None else max(0, self.used - self.keep)
        return keys[:, low:], values[:, low:]

    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.buffer.numel() * self.buffer.element_size()


class RowCache:
    """The cache of one request: one `LayerStore` a layer.

    Attributes:
        length: tokens encoded so far; the next one's position.
        max_length: most tokens it will hold.
    """

    def __init__(
        self, config: ModelConfig, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = 0
        self.max_length = max_length
        self.layers: list[LayerStore] = []
        for layer, kind in enumerate(config.layer_types):
            shape = config.attention(layer)
            keep = config.sliding_window - 1 if kind == "sliding_attention" else None
            self.layers.append(
                LayerStore(shape.num_key_value_heads, shape.head_dim, keep, dtype, device)
            )

    def nbytes(self) -> int:
        """Bytes allocated in all layers."""
        return sum(layer.nbytes() for layer in self.layers)


class Cache:
    """The caches of a batch of requests, one row each; lengths may differ.

    Attributes:
        rows: the requests' own caches. Rows may be taken out and put together at will.
    """

    def __init__(self, rows: list[RowCache]) -> None:
        self.rows = rows

    @property
    def lengths(self) -> list[int]:
        """Tokens encoded in each row."""
        return [row.length for row in self.rows]
