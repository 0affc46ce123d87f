"""Attention of many requests at once over keys in pages: the plain torch form, and its inputs.

Rows are packed: N queries of R segments, each segment with its own pages, its own number of keys,
and causal or bidirectional. One call runs the same kernels however many segments there are. The
Triton form takes the same `PagedSegments` and reads pages where they lie; this form gathers them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.e4m3 import codes, numbers, stored


@dataclass(frozen=True, slots=True, eq=False)
class PagedSegments:
    """Where the queries and the keys of R segments are, in the layers of one kind.

    Attributes:
        slots: int64 [N], where the key of each row goes; rows that only fill up have a slot that
            nobody reads.
        first: int64 [R], the first row of each segment.
        length: int64 [R], its rows; 0 for a segment that only fills up.
        stored: int64 [R], its keys before them.
        low: int64 [R], the first of its keys that any of its rows sees.
        causal: int64 [R], 1 if row t sees keys up to stored + t, 0 if all of the segment's.
        table: int64 [R, B], the page of each block of `page` keys, from the block of `low` on.
        window: most keys that a causal row sees, itself counted; None: all.
        page: keys of a page.
        longest: most rows of a segment.
        reach: most keys of a segment from `low` on.
    """

    slots: Tensor
    first: Tensor
    length: Tensor
    stored: Tensor
    low: Tensor
    causal: Tensor
    table: Tensor
    window: int | None
    page: int
    longest: int
    reach: int


@dataclass(frozen=True, slots=True, eq=False)
class GatheredSegments:
    """`PagedSegments` as indices, made once a forward for all layers of a kind.

    Attributes:
        slots: as there.
        queries: int64 [R * T], the row of each place of a block of T rows a segment.
        keys: int64 [R * S], the slot of each place of a block of S keys a segment.
        seen: bool [R, 1, T, S].
        places: int64 [N], the place of each row among `queries`.
    """

    slots: Tensor
    queries: Tensor
    keys: Tensor
    seen: Tensor
    places: Tensor


def gather_indices(at: PagedSegments, rows: int) -> GatheredSegments:
    """The indices for N = `rows` rows. The number of kernels does not depend on the segments."""
    device = at.slots.device
    turn = torch.arange(at.longest, device=device)[None, :]  # [1, T]
    own = turn < at.length[:, None]  # [R, T]
    queries = torch.where(own, at.first[:, None] + turn, 0)
    key = torch.arange(at.reach, device=device)[None, :]  # [1, S], from the block of `low` on
    start = at.low // at.page * at.page
    number = key + start[:, None]  # [R, S] of the segment's keys
    there = number < (at.stored + at.length)[:, None]
    # A place without a key repeats the first key of the block: memory never written may hold NaN,
    # which a weight of zero does not silence.
    inside = torch.where(there, key, (at.low - start)[:, None])
    page = at.table.gather(1, inside // at.page)
    keys = page * at.page + inside % at.page
    place = (at.stored[:, None] + turn)[:, :, None]  # [R, T, 1]
    number = number[:, None, :]
    seen = (there & (key + start[:, None] >= at.low[:, None]))[:, None, :]
    free = at.causal[:, None, None] == 0
    before = number <= place
    if at.window is not None:
        before = before & (number > place - at.window)
    seen = seen & (free | before)
    seen = seen | ~own[:, :, None]  # a place without a row sees anything
    spread = torch.full((rows,), 0, dtype=torch.int64, device=device)
    flat = torch.where(own, queries, rows).flatten()
    spread = torch.cat((spread, spread[:1])).index_copy(
        0, flat, torch.arange(flat.numel(), device=device)
    )[:rows]
    return GatheredSegments(at.slots, queries.flatten(), keys.flatten(), seen[:, None], spread)


def write_pages(buffer: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Put keys and values [N, Hkv, hd] into their slots of `buffer` [2, Hkv, slots, hd]."""
    both = torch.stack((k.transpose(0, 1), v.transpose(0, 1)))
    codes(buffer).index_copy_(2, slots, stored(both, buffer))


def attend_gathered(q: Tensor, buffer: Tensor, at: GatheredSegments) -> Tensor:
    """Attention with softmax scale 1.

    Args:
        q: [N, H, hd]; H is a multiple of Hkv.
        buffer: [2, Hkv, slots, hd], in the dtype of `q` or e4m3; keys and values of the rows
            themselves are there already.

    Returns:
        [N, H, hd]; rows that only fill up mean nothing.
    """
    _, heads, width = q.shape
    _, kv_heads, _, _ = buffer.shape
    count, _, length, reach = at.seen.shape
    group = heads // kv_heads
    place = codes(buffer)
    found = place.index_select(2, at.keys)
    found = found if place is buffer else numbers(found, q)
    keys, values = found.view(2, kv_heads, count, reach, width).transpose(1, 2)  # [R, Hkv, S, hd]
    folded = q.index_select(0, at.queries).view(count, length, kv_heads, group, width)
    folded = folded.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, group * length, width)
    seen = at.seen.expand(count, group, length, reach).reshape(count, 1, group * length, reach)
    out = F.scaled_dot_product_attention(folded, keys, values, seen, scale=1.0)
    out = out.view(count, kv_heads, group, length, width).permute(0, 3, 1, 2, 4)
    return out.reshape(count * length, heads, width).index_select(0, at.places)
