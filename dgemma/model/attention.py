"""Attention: the projections of a layer, and the keys that a query may see in each mode.

`Attention` projects, norms and rotates; an `AttentionContext` that is handed in decides which keys
each query sees. `CachedContext` is the one for inference; training hands in its own.

    encode   query p sees keys 0..p           (sliding layers: p-W+1..p)
    denoise  every canvas position sees all cached keys and the whole canvas
             (sliding layers: the last W-1 cached keys, counted from the canvas start)

Knows nothing about experts, embeddings or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from dgemma.kernels.attention import grouped
from dgemma.kernels.cuda import cuda_kernels
from dgemma.model.cache import RowView
from dgemma.model.config import ModelConfig
from dgemma.model.layers import Linear, RMSNorm, rotate
from dgemma.types import PAGE

QUERY_BLOCK = 4 * PAGE
"""Queries of one encode product: keeps masks small, so memory is linear in the prompt."""


class AttentionContext(Protocol):
    """Which keys each query sees. Called once per layer, in order."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, hd], k and v [N, Hkv, hd] of this forward's tokens -> [N, H, hd]."""


class Attention(nn.Module):
    """q, k, v with their norms and rotary, then the output projection.

    Full layers have no v_proj: their value is the raw output of k_proj under a scale-free norm,
    without rotary. The softmax scale is 1.0: the norms on q and k take its place.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        shape = config.attention(layer)
        self.layer = layer
        self.head_dim = shape.head_dim
        width, eps = config.hidden_size, config.rms_norm_eps
        sliding = config.layer_types[layer] == "sliding_attention"
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Linear(width, config.num_attention_heads * shape.head_dim)
        self.k_proj = Linear(width, kv_width)
        self.v_proj = Linear(width, kv_width) if sliding else None
        self.o_proj = Linear(config.num_attention_heads * shape.head_dim, width)
        self.q_norm = RMSNorm(shape.head_dim, eps)
        self.k_norm = RMSNorm(shape.head_dim, eps)
        self.v_norm = RMSNorm(shape.head_dim, eps, scale=False)

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], context: AttentionContext
    ) -> Tensor:  # [N, D] -> [N, D]
        rows = x.shape[0]
        q = self.q_proj(x).view(rows, -1, self.head_dim)
        k = self.k_proj(x).view(rows, -1, self.head_dim)
        v = k if self.v_proj is None else self.v_proj(x).view(rows, -1, self.head_dim)
        q = rotate(self.q_norm(q), *table)
        k = rotate(self.k_norm(k), *table)
        seen = context.attend(self.layer, q, k, self.v_norm(v))
        out: Tensor = self.o_proj(seen.reshape(rows, -1))
        return out


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """Consecutive tokens of one request in a packed forward.

    Attributes:
        cache: the request's cache.
        length: how many tokens.
        denoise: a canvas (reads the cache) or prompt tokens (appended to it).
    """

    cache: RowView
    length: int
    denoise: bool


class CachedContext:
    """Attention of packed segments over their own caches, each request by itself: no padding."""

    def __init__(self, config: ModelConfig, segments: Sequence[AttentionSpan], kernel: str) -> None:
        self.window = config.sliding_window
        self.kernel = kernel
        self.fused = cuda_kernels().attend if kernel == "triton" else None
        self.segments = segments

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`. Encode segments are appended to their caches."""
        out = torch.zeros_like(q)  # rows without a segment are filling
        start = 0
        for segment in self.segments:
            rows = slice(start, start + segment.length)
            start += segment.length
            store, causal = segment.cache.layers[layer], not segment.denoise
            keys, values = store.append(k[rows], v[rows])
            window = self.window if causal and store.keep is not None else None
            if self.fused is not None:
                out[rows] = self.fused(q[rows], keys, values, window, causal=causal)
            elif causal:
                self._causal(q[rows], keys, values, window, out[rows], segment.cache)
            else:
                out[rows] = grouped(q[rows], keys, values, None, self.kernel)
        return out

    def _causal(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        out: Tensor,
        cache: RowView,
    ) -> None:
        """The last T of the S keys are the queries' own; write [T, H, hd] into `out`.

        Blocks end at multiples of their size, counted from position 0 and not from the first of
        these tokens, and at the borders of the cache. So a token is computed in the same company,
        and rounded alike, whether a prompt is encoded at once, in pieces, or from the middle on.
        """
        length, total = q.shape[0], keys.shape[1]
        offset, begin = total - length, cache.length
        place = torch.arange(total, device=q.device)
        size = PAGE if q.dtype == torch.float32 else QUERY_BLOCK
        cuts = {*range(size - begin % size, length, size), *(b - begin for b in cache.borders)}
        ends = [*sorted(cut for cut in cuts if 0 < cut < length), length]
        for low, high in pairwise([0, *ends]):
            first = 0 if window is None else max(0, offset + low - window + 1)
            seen = slice(first, offset + high)
            own = place[offset + low : offset + high, None]
            # Without a window every query sees all that is before the block.
            masked = slice(offset + low if window is None else first, offset + high)
            mask = place[None, masked] <= own
            if window is not None:
                mask &= place[None, masked] > own - window
            block = q[low:high], keys[:, seen], values[:, seen], mask
            out[low:high] = grouped(*block, self.kernel)
