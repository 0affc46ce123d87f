"""Attention: the projections of a layer, and the reference path from queries to keys.

`Attention` projects, norms and rotates; the batch's `AttentionPath` decides which keys each query
sees. Every path follows one rule:

    encode   query p sees keys 0..p           (sliding layers: p-W+1..p)
    denoise  every canvas position sees all cached keys and the whole canvas
             (sliding layers: the last W-1 cached keys, counted from the canvas start)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from dgemma.kernels.attention import grouped
from dgemma.kernels.e4m3 import codes, numbers, stored
from dgemma.kernels.workspace import WORKSPACE
from dgemma.model.batch import ForwardBatch
from dgemma.model.cache import PagedMemory, Segment
from dgemma.model.config import LayerType, ModelConfig
from dgemma.model.layers import Linear, RMSNorm, rotate
from dgemma.types import PAGE

QUERY_BLOCK = 4 * PAGE
"""Queries of one encode product: keeps masks small, so memory is linear in the prompt."""

EXACT_ROWS = 64
"""In fp32 on a CPU a batch is filled up to a multiple of this many rows: elementwise kernels take a
scalar path, which rounds in another way, for the numbers after the last whole vector, so a row's
bits would depend on how many rows follow."""

KINDS: tuple[LayerType, ...] = ("full_attention", "sliding_attention")


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
        self.kind = config.layer_types[layer]
        sliding = self.kind == "sliding_attention"
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Linear(width, config.num_attention_heads * shape.head_dim)
        self.k_proj = Linear(width, kv_width)
        self.v_proj = Linear(width, kv_width) if sliding else None
        self.o_proj = Linear(config.num_attention_heads * shape.head_dim, width)
        self.q_norm = RMSNorm(shape.head_dim, eps)
        self.k_norm = RMSNorm(shape.head_dim, eps)
        self.v_norm = RMSNorm(shape.head_dim, eps, scale=False)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:  # [N, D] -> [N, D]
        rows, rotary = x.shape[0], batch.rotary[self.kind]
        q = self.q_proj(x).view(rows, -1, self.head_dim)
        k = self.k_proj(x).view(rows, -1, self.head_dim)
        v = k if self.v_proj is None else self.v_proj(x).view(rows, -1, self.head_dim)
        q = rotate(self.q_norm(q), *rotary)
        k = rotate(self.k_norm(k), *rotary)
        seen = batch.attention.attend(self.layer, q, k, self.v_norm(v), batch)
        out: Tensor = self.o_proj(seen.reshape(rows, -1))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class SegmentPages:
    """The slots of one segment in the layers of one kind.

    Slots side by side are a slice and are read in place; others are gathered first. The results
    are the same.

    Attributes:
        new: of the segment's own tokens.
        seen: of all tokens that any of them may see, themselves at the end.
    """

    new: slice | Tensor
    seen: slice | Tensor

    def put(self, buffer: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [T, Hkv, hd]; those that are seen, [Hkv, S, hd] each.

        A token's own key is read as it is stored, so its bits do not depend on which tokens came
        with it.
        """
        place = codes(buffer)
        for half, x in enumerate((k, v)):
            new = stored(x, buffer).transpose(0, 1)
            if isinstance(self.new, slice):
                place[half, :, self.new] = new
            else:
                place[half].index_copy_(1, self.new, new)
        if isinstance(self.seen, slice):
            found = place[:, :, self.seen]
        else:
            _, heads, _, width = place.shape
            size = 2, heads, len(self.seen), width
            found = WORKSPACE.take("gathered keys", 2 * heads, size[2] * width, place).view(size)
            torch.index_select(place, 2, self.seen, out=found)
        keys, values = found if place is buffer else numbers(found, k)
        return keys, values


class ReferenceAttention:
    """Each segment by itself, one after the other: no padding, and in fp32 on a CPU the same bits
    whatever the other segments are."""

    uniform = False

    def __init__(self, config: ModelConfig, kernel: str) -> None:
        """
        Args:
            kernel: a name of `kernels.attention.ATTENTION`.
        """
        self.window = config.sliding_window
        self.kernel = kernel

    def size(self, rows: int, like: Tensor) -> int:
        """See `AttentionPath`."""
        exact = like.dtype == torch.float32 and like.device.type == "cpu"
        return -(-rows // EXACT_ROWS) * EXACT_ROWS if exact else rows

    def find(
        self, segments: Sequence[Segment], rows: int, memory: PagedMemory
    ) -> Mapping[LayerType, list[SegmentPages]]:
        """See `AttentionPath`."""
        device = memory.buffers[0].device
        found: dict[LayerType, list[SegmentPages]] = {kind: [] for kind in KINDS}
        for segment in segments:
            for kind, places in found.items():
                low = segment.seen_from(memory.keep if kind == "sliding_attention" else None)
                end = segment.stored + segment.length
                new, seen = (_slots(segment, kind, at, end, device) for at in (segment.stored, low))
                places.append(SegmentPages(new, seen))
        return found

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """See `AttentionPath`."""
        assert batch.memory is not None
        out = torch.zeros_like(q)  # rows without a segment only fill up
        kind, buffer = batch.memory.layer_types[layer], batch.memory.buffers[layer]
        places: Sequence[SegmentPages] = batch.pages[kind]
        ends = [0, *accumulate(segment.length for segment in batch.segments)]
        for segment, place, (low, high) in zip(batch.segments, places, pairwise(ends), strict=True):
            keys, values = place.put(buffer, k[low:high], v[low:high])
            rows = q[low:high]
            if segment.denoise:
                out[low:high] = grouped(rows, keys, values, None, self.kernel)
            else:
                window = self.window if kind == "sliding_attention" else None
                self._causal(rows, keys, values, window, out[low:high], segment)
        return out

    def _causal(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        out: Tensor,
        segment: Segment,
    ) -> None:
        """The last T of the S keys are the queries' own; write [T, H, hd] into `out`.

        Blocks end at multiples of their size, counted from position 0 and not from the first of
        these tokens, and at the borders of the cache. So a token is computed in the same company,
        and rounded alike, whether a prompt is encoded at once, in pieces, or from the middle on.
        """
        length, total = q.shape[0], keys.shape[1]
        offset, begin = total - length, segment.stored
        place = torch.arange(total, device=q.device)
        size = PAGE if q.dtype == torch.float32 else QUERY_BLOCK
        cuts = {*range(size - begin % size, length, size), *(b - begin for b in segment.borders)}
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


def _slots(
    segment: Segment, kind: LayerType, low: int, high: int, device: torch.device
) -> slice | Tensor:
    """The slots of tokens low..high-1: a slice if they lie side by side, else int64 [S]."""
    first = low // PAGE
    pages = segment.pages(kind)[first : -(-high // PAGE)]
    if all(right - left == 1 for left, right in pairwise(pages)):
        start = pages[0] * PAGE + low - first * PAGE
        return slice(start, start + high - low)
    return torch.from_numpy(segment.slots(kind, low, high)).to(device)
