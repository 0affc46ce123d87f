"""The vocabulary operation, streamed: tile by tile over the ids, never holding [N, V].

`softmax(cap(h E^T) / t) E` is one attention whose keys and values are the same table. A tile of
logits is made, turned into block sums and into its share of the soft embedding while the tile of
the table is still in cache, and forgotten: the table is read once. What the sample needs after the
last tile (the logits of one block of 256 ids a row) is made again from those 256 embeddings.

`epilogue` is what happens to a tile between its two matrix products. Knows nothing about canvases
or steps.
Source: the idea of the online softmax (Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.blocks import (
    BLOCK,
    LOWEST,
    BlockSums,
    as_blocks,
    block_sums,
    entropy,
    log_total,
    pick_block,
    pick_inside,
    total,
)
from dgemma.kernels.buffers import SCRATCH
from dgemma.kernels.controls import Controls
from dgemma.kernels.experts import ROW_TILE
from dgemma.kernels.reading import Logprobs, Reading

TILE_ELEMENTS = 1 << 21
"""Logits of a tile on a CPU: 8 MiB in fp32."""

CUDA_TILE_ELEMENTS = 1 << 23
GATHER_ELEMENTS = 1 << 24
"""Most elements of embeddings gathered at a time for chosen ids."""


@dataclass(slots=True, eq=False)
class Running:
    """What is known of the tiles so far.

    Attributes:
        peak: fp32 [N], the largest tempered logit.
        best: int64 [N], its id.
        sums: block sums of the whole vocabulary, filled tile by tile.
        soft: fp32 [N, D], sum of exp(logit - peak) * embedding.
    """

    peak: Tensor
    best: Tensor
    sums: BlockSums
    soft: Tensor


def epilogue(x: Tensor, low: int, running: Running, like: Tensor) -> tuple[Tensor, Tensor]:
    """Take the tempered logits of a tile into account.

    Args:
        x: fp32 [N, T], T a multiple of 256; -inf where barred; overwritten.
        low: the first id.
        running: sums, peak and best are brought up to date.
        like: a tensor with the dtype of the weights.

    Returns:
        The weights exp(logit - peak) [N, T] in the dtype of `like`, and fp32 [N, 1] by which what
        was summed so far must shrink because the peak has risen.
    """
    rows = x.shape[0]
    blocks = as_blocks(x)  # [N, T/256, 256]
    first = low // BLOCK
    here = slice(first, first + blocks.shape[1])
    top = blocks.amax(-1).clamp_(min=LOWEST)
    highest, where = top.max(-1)
    inside = blocks[torch.arange(rows, device=x.device), where].argmax(-1)
    running.best = torch.where(highest > running.peak, low + where * BLOCK + inside, running.best)
    peak = torch.maximum(running.peak, highest)
    shrink = (running.peak - peak).exp_()[:, None]
    running.peak = peak
    blocks.sub_(top[:, :, None])
    e = torch.exp(blocks, out=SCRATCH.take("e", rows, x.shape[1], x).view_as(blocks))
    running.sums.top[:, here] = top
    running.sums.mass[:, here] = e.sum(-1)
    running.sums.moment[:, here] = blocks.clamp_(min=LOWEST).mul_(e).sum(-1)
    e.mul_((top - peak[:, None]).exp_()[:, :, None])
    weights = SCRATCH.take("weights", rows, x.shape[1], like)
    return weights.copy_(e.view(rows, -1)), shrink


class TiledReader:
    """The streamed operation bound to a tied embedding table.

    Args:
        table: [V, D].
        softcap, embed_scale: see `Vocabulary`.
    """

    def __init__(self, table: Tensor, softcap: float, embed_scale: Tensor) -> None:
        self.table = table
        self.softcap = softcap
        self.embed_scale = embed_scale
        self.tile_elements = CUDA_TILE_ELEMENTS if table.is_cuda else TILE_ELEMENTS

    def read(
        self, hidden: Tensor, temperature: Tensor, keys: Tensor, controls: Controls
    ) -> Reading:
        """See `Vocabulary.read`; filters are not for tiles."""
        assert controls.filters is None
        rows, width = hidden.shape
        size = self.table.shape[0]
        device = self.table.device
        running = Running(
            peak=torch.full((rows,), LOWEST, device=device),
            best=torch.zeros(rows, dtype=torch.int64, device=device),
            sums=BlockSums.empty(rows, size, device),
            soft=torch.zeros(rows, width, device=device),
        )
        plain = BlockSums.empty(rows, size, device) if controls.wants_logprobs else None
        likely: list[tuple[Tensor, Tensor]] = []
        tile = max(BLOCK, self.tile_elements // max(rows, ROW_TILE) // BLOCK * BLOCK)
        for low in range(0, size, tile):
            x = self._logits(hidden, low, min(low + tile, size), controls)
            if plain is not None:
                here = slice(low // BLOCK, low // BLOCK + x.shape[1] // BLOCK)
                for whole, part in zip(_fields(plain), _fields(block_sums(x)), strict=True):
                    whole[:, here] = part
            if controls.alternatives:
                likely = [_best(x, low, likely, controls.alternatives)]
            x.div_(temperature[:, None])
            self._absorb(x, low, running)
        # The cap hides an infinite product, so the hidden state itself is looked at.
        nats = torch.where(hidden.isfinite().all(-1), entropy(running.sums), torch.nan)
        sample = self._sample(hidden, temperature, keys, controls, running.sums)
        running.soft.div_(total(running.sums, running.peak)[:, None])
        soft = running.soft.to(self.table.dtype) * self.embed_scale
        logprobs = None
        if plain is not None:
            asked = [running.best[:, None], sample[:, None]]
            asked += [controls.score_ids] if controls.score_ids is not None else []
            asked += [ids for _, ids in likely]
            ids = torch.cat(asked, dim=1)
            logits = self._chosen(hidden, ids, controls)
            logprobs = Logprobs(
                ids=ids,
                tempered=logits / temperature[:, None] - log_total(running.sums)[:, None],
                plain=logits - log_total(plain)[:, None],
            )
        return Reading(running.best, sample, nats, soft, logprobs)

    def _absorb(self, x: Tensor, low: int, running: Running) -> None:
        """Add a tile's tempered logits to what is known, and its embeddings to the belief."""
        weights, shrink = epilogue(x, low, running, self.table)
        table = self.table[low : low + x.shape[1]]
        part = SCRATCH.take("part", len(x), self.table.shape[1], self.table)
        torch.mm(weights[:, : len(table)], table, out=part)
        running.soft.mul_(shrink).add_(part)

    def _logits(self, hidden: Tensor, low: int, high: int, controls: Controls) -> Tensor:
        """Capped and adjusted logits of the ids low..high-1, up to a whole block with -inf."""
        rows = hidden.shape[0]
        if rows < ROW_TILE:  # see `rows_linear`
            hidden = F.pad(hidden, (0, 0, 0, ROW_TILE - rows))
        width = -(-(high - low) // BLOCK) * BLOCK
        x = SCRATCH.take("x", len(hidden), width, self.embed_scale.float())
        table = self.table[low:high].T
        if self.table.dtype == torch.float32 and width == high - low:
            torch.mm(hidden, table, out=x)
        else:
            raw = SCRATCH.take("raw", len(hidden), high - low, self.table)
            x[:, : high - low].copy_(torch.mm(hidden, table, out=raw))
            x[:, high - low :] = -torch.inf
        x = x[:rows]
        capped(x, self.softcap, exact=self.table.dtype == torch.float32)
        x[:, high - low :] = -torch.inf
        controls.adjust(x[:, : high - low], low)
        return x

    def _sample(
        self,
        hidden: Tensor,
        temperature: Tensor,
        keys: Tensor,
        controls: Controls,
        sums: BlockSums,
    ) -> Tensor:
        """int64 [N]; the logits of the chosen block of each row are made anew."""
        block, rest = pick_block(sums, keys)
        out = torch.zeros_like(block)
        for chosen in sorted(set(block.tolist())):
            rows = (block == chosen).nonzero()[:, 0]
            low, high = chosen * BLOCK, min((chosen + 1) * BLOCK, len(self.table))
            x = self._logits(hidden[rows], low, high, controls.rows(rows))
            out[rows] = low + pick_inside(x.div_(temperature[rows, None]), rest[rows])
        return out

    def _chosen(self, hidden: Tensor, ids: Tensor, controls: Controls) -> Tensor:
        """Capped and adjusted logits of chosen ids: int64 [N, S] -> fp32 [N, S]."""
        at_a_time = max(1, GATHER_ELEMENTS // (ids.shape[1] * hidden.shape[1]))
        parts = [
            torch.bmm(self.table[i], h[:, :, None])[:, :, 0].float()
            for i, h in zip(*(torch.split(t, at_a_time) for t in (ids, hidden)), strict=True)
        ]
        logits = torch.cat(parts).div_(self.softcap).tanh_().mul_(self.softcap)
        return controls.adjust_ids(logits, ids)


def capped(x: Tensor, cap: float, exact: bool) -> Tensor:
    """`cap * tanh(x / cap)` in place; not exact: within 4e-7 of the cap, in half the time."""
    if exact:
        return x.div_(cap).tanh_().mul_(cap)
    # tanh(y) = 1 - 2 / (1 + exp(2 y)); an overflow to infinity gives 1.
    return x.mul_(2 / cap).exp_().add_(1).reciprocal_().mul_(-2 * cap).add_(cap)


def _fields(sums: BlockSums) -> tuple[Tensor, Tensor, Tensor]:
    return sums.top, sums.mass, sums.moment


def _best(
    x: Tensor, low: int, before: list[tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """The `count` largest of a tile's logits and those before it: values and ids [N, count]."""
    values, ids = x.topk(min(count, x.shape[1]), dim=-1)
    values, ids = (torch.cat(p, 1) for p in zip(*before, (values, ids + low), strict=True))
    values, order = values.topk(min(count, values.shape[1]), dim=-1)
    return values, ids.gather(1, order)
