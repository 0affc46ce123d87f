"""The head, streamed: tile by tile over the ids, never holding [N, V].

`softmax(cap(h E^T) / t) E` is one attention whose keys and values are the same table. A tile of
logits is made, turned into block sums and into its share of the soft embedding while the tile of
the table is still in cache, and forgotten: the table is read (a packed one: unpacked) once for both
products. The sample needs the logits of one block of 256 ids a row after the last tile;
they are made again from those 256 embeddings.

`epilogue` works on a tile between its two matrix products. Knows nothing about canvases or steps.
Source: the idea of the online softmax (Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.controls import Controls
from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.embedding import EmbeddingTable
from dgemma.kernels.head_belief import add_needed, add_whole, needed
from dgemma.kernels.head_output import HeadLogprobs, HeadOutput
from dgemma.kernels.linear import ROW_TILE, rows_linear
from dgemma.kernels.sampling import (
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
from dgemma.kernels.workspace import WORKSPACE

TILE_ELEMENTS = 1 << 21
"""Logits of a tile on a CPU: 8 MiB in fp32."""

CUDA_TILE_ELEMENTS = 1 << 23
GATHER_ELEMENTS = 1 << 24
"""Most elements of embeddings gathered at a time for chosen ids."""


@dataclass(slots=True, eq=False)
class Running:
    """The sums over the tiles so far.

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


def epilogue(x: Tensor, low: int, running: Running) -> tuple[Tensor, Tensor]:
    """Take the tempered logits of a tile into account.

    Args:
        x: fp32 [N, T], T a multiple of 256; -inf where barred; overwritten.
        low: the first id.
        running: sums, peak, best and soft are brought up to date, but for the tile's own share of
            soft: what was summed so far shrinks where the peak has risen.

    Returns:
        exp(logit - largest of its block), fp32 [N, T / 256, 256], and fp32 [N, T / 256] that turns
        a block's into the weights exp(logit - peak).
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
    running.soft.mul_((running.peak - peak).exp_()[:, None])
    running.peak = peak
    blocks.sub_(top[:, :, None])
    e = torch.exp(blocks, out=WORKSPACE.take("e", rows, x.shape[1], x).view_as(blocks))
    running.sums.top[:, here] = top
    running.sums.mass[:, here] = e.sum(-1)
    running.sums.moment[:, here] = blocks.clamp_(min=LOWEST).mul_(e).sum(-1)
    return e, (top - peak[:, None]).exp_()


class TiledReader:
    """The streamed operation bound to a tied embedding.

    Args:
        table, softcap: see `Head`.
        device: the device of the run.
        triton: use the kernels of `head_triton`; they read the table as it lies in memory.

    Attributes:
        leaves_out: whether beliefs in 16 bit leave out blocks that weigh nothing; see
            `head_belief`. True on a CPU.
    """

    def __init__(
        self, table: EmbeddingTable, softcap: float, device: torch.device, triton: bool = False
    ) -> None:
        self.table = table
        self.softcap = softcap
        self.cuda = cuda_kernels() if triton else None
        # To choose blocks on a CUDA device the host would have to wait for it at every tile.
        self.leaves_out = device.type == "cpu"
        self.tile_elements = CUDA_TILE_ELEMENTS if device.type == "cuda" else TILE_ELEMENTS

    def read(
        self,
        hidden: Tensor,
        temperature: Tensor,
        uniforms: Tensor,
        controls: Controls,
        likely: Tensor | None = None,
    ) -> HeadOutput:
        """See `Head.read`; filters are not for tiles."""
        assert controls.filters is None
        rows, width = hidden.shape
        size, device = self.table.size, hidden.device
        running = Running(
            peak=torch.full((rows,), LOWEST, device=device),
            best=torch.zeros(rows, dtype=torch.int64, device=device),
            sums=BlockSums.empty(rows, size, device),
            soft=torch.zeros(rows, width, device=device),
        )
        plain = BlockSums.empty(rows, size, device) if controls.wants_logprobs else None
        best: list[tuple[Tensor, Tensor]] = []
        tile = max(BLOCK, self.tile_elements // max(rows, ROW_TILE) // BLOCK * BLOCK)
        floor = self._floor(hidden, temperature, controls, likely)
        fused = self.cuda is not None and controls.bias is None and plain is None
        for low in range(0, size, tile):
            table = self.table.tile(low, min(low + tile, size))
            if fused:
                self._absorb_fused(hidden, temperature, table, low, controls, running)
                continue
            x = self._logits(hidden, table, low, controls)
            if plain is not None:
                here = slice(low // BLOCK, low // BLOCK + x.shape[1] // BLOCK)
                for whole, part in zip(plain, block_sums(x), strict=True):
                    whole[:, here] = part
            if controls.alternatives:
                best = [_best(x, low, best, controls.alternatives)]
            e, scale = epilogue(x.div_(temperature[:, None]), low, running)
            need = None
            if floor is not None:
                here = slice(low // BLOCK, low // BLOCK + scale.shape[1])
                need = needed(running.sums, here, torch.maximum(running.peak, floor))
            add_needed(need, e, scale, table, running.soft)
        # The cap hides an infinite product, so the hidden state itself is looked at.
        nats = torch.where(hidden.isfinite().all(-1), entropy(running.sums), torch.nan)
        sample = self._sample(hidden, temperature, uniforms, controls, running.sums)
        running.soft.div_(total(running.sums, running.peak)[:, None])
        soft = running.soft.to(hidden.dtype) * self.table.scale()
        logprobs = None
        if plain is not None:
            ids = controls.scored(running.best, sample, [ids for _, ids in best])
            logits = self._chosen(hidden, ids, controls)
            logprobs = HeadLogprobs(
                ids=ids,
                tempered=logits / temperature[:, None] - log_total(running.sums)[:, None],
                plain=logits - log_total(plain)[:, None],
            )
        return HeadOutput(running.best, sample, nats, soft, logprobs)

    def _floor(
        self, hidden: Tensor, temperature: Tensor, controls: Controls, likely: Tensor | None
    ) -> Tensor | None:
        """fp32 [N], below the logarithm of each row's mass; None: the belief takes every id.

        A likely id's own logit, less what its product may be rounded by elsewhere.
        """
        if hidden.dtype == torch.float32 or not self.leaves_out:
            return None
        if likely is None:
            return torch.full_like(temperature, LOWEST)
        logits = self._chosen(hidden, likely[:, None], controls)[:, 0]
        return (logits - logits.abs() * torch.finfo(hidden.dtype).eps) / temperature

    def _absorb_fused(
        self,
        hidden: Tensor,
        temperature: Tensor,
        table: Tensor,
        low: int,
        controls: Controls,
        running: Running,
    ) -> None:
        """A tile without fp32 logits: raw products, then one kernel."""
        assert self.cuda is not None
        rows, count = len(hidden), len(table)
        width = -(-count // BLOCK) * BLOCK
        raw = WORKSPACE.take("raw", rows, width, hidden)
        if width == count:
            torch.mm(hidden, table.T, out=raw)
        else:
            raw[:, :count] = hidden @ table.T
            raw[:, count:] = -torch.inf
        controls.adjust(raw[:, :count], low)
        weights = WORKSPACE.take("weights", rows, width, hidden)
        shrink = self.cuda.absorb(
            raw, weights, temperature, self.softcap, low, running.peak, running.best, running.sums
        )
        running.soft.mul_(shrink)
        add_whole(weights, table, running.soft)

    def _logits(self, hidden: Tensor, table: Tensor, low: int, controls: Controls) -> Tensor:
        """Capped and adjusted logits of a tile's ids, up to a whole block with -inf."""
        rows, count = len(hidden), len(table)
        if rows < ROW_TILE:  # see `rows_linear`
            hidden = F.pad(hidden, (0, 0, 0, ROW_TILE - rows))
        width = -(-count // BLOCK) * BLOCK
        x = WORKSPACE.take("x", len(hidden), width, hidden, torch.float32)
        if hidden.dtype == torch.float32 and width == count:
            torch.mm(hidden, table.T, out=x)
        else:
            raw = WORKSPACE.take("raw", len(hidden), count, hidden)
            x[:, :count].copy_(torch.mm(hidden, table.T, out=raw))
            x[:, count:] = -torch.inf
        x = x[:rows]
        capped(x, self.softcap, exact=hidden.dtype == torch.float32)
        x[:, count:] = -torch.inf
        controls.adjust(x[:, :count], low)
        return x

    def _sample(
        self,
        hidden: Tensor,
        temperature: Tensor,
        uniforms: Tensor,
        controls: Controls,
        sums: BlockSums,
    ) -> Tensor:
        """int64 [N]; the logits of the chosen block of each row are made anew."""
        block, rest = pick_block(sums, uniforms)
        products = self._block_products(hidden, block).float()
        x = capped(products, self.softcap, exact=hidden.dtype == torch.float32)
        ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
        size = self.table.size
        x = controls.adjust_ids(x, ids.clamp(max=size - 1)).masked_fill(ids >= size, -torch.inf)
        return block * BLOCK + pick_inside(x.div_(temperature[:, None]), rest)

    def _block_products(self, hidden: Tensor, block: Tensor) -> Tensor:
        """Products of each row with the 256 embeddings of its block: [N, 256]."""
        if self.cuda is not None:
            return self.cuda.block_products(hidden, self.table.tile(0, self.table.size), block)
        out = hidden.new_zeros(len(hidden), BLOCK)
        for chosen in sorted(set(block.tolist())):
            rows = (block == chosen).nonzero()[:, 0]
            low = chosen * BLOCK
            table = self.table.tile(low, min(low + BLOCK, self.table.size))
            out[rows, : len(table)] = rows_linear(hidden[rows], table)
        return out

    def _chosen(self, hidden: Tensor, ids: Tensor, controls: Controls) -> Tensor:
        """Capped and adjusted logits of chosen ids: int64 [N, S] -> fp32 [N, S]."""
        at_a_time = max(1, GATHER_ELEMENTS // (ids.shape[1] * hidden.shape[1]))
        parts = [
            torch.bmm(self.table.rows(i), h[:, :, None])[:, :, 0].float()
            for i, h in zip(*(torch.split(t, at_a_time) for t in (ids, hidden)), strict=True)
        ]
        exact = hidden.dtype == torch.float32
        return controls.adjust_ids(capped(torch.cat(parts), self.softcap, exact), ids)


def capped(x: Tensor, cap: float, exact: bool) -> Tensor:
    """`cap * tanh(x / cap)`, in place unless a gradient is wanted.

    Not exact: within 4e-7 of the cap, in half the time.
    """
    if x.requires_grad:
        return torch.tanh(x / cap) * cap
    if exact:
        return x.div_(cap).tanh_().mul_(cap)
    # tanh(y) = 1 - 2 / (1 + exp(2 y)); an overflow to infinity gives 1.
    return x.mul_(2 / cap).exp_().add_(1).reciprocal_().mul_(-2 * cap).add_(cap)


def _best(
    x: Tensor, low: int, before: list[tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """The `count` largest of a tile's logits and those before it: values and ids [N, count]."""
    values, ids = x.topk(min(count, x.shape[1]), dim=-1)
    values, ids = (torch.cat(p, 1) for p in zip(*before, (values, ids + low), strict=True))
    values, order = values.topk(min(count, values.shape[1]), dim=-1)
    return values, ids.gather(1, order)
