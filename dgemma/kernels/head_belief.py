"""The second product of the streamed head: the belief, from the blocks of ids that matter.

Once a row is sure of its id, nearly all of its 256-id blocks weigh nothing. In 16 bit a block is
left out of a row's sum where its mass is below an even share of `LEFT_OUT`; the sum that it is
measured against is a lower bound, so a row never lacks more than `LEFT_OUT` of its mass. Argmax,
sample and entropy never come through here. fp32 leaves nothing out.

Knows nothing about logits, controls or canvases.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.kernels.linear import ROW_TILE
from dgemma.kernels.sampling import BLOCK, BlockSums
from dgemma.kernels.workspace import WORKSPACE

LEFT_OUT = 2.0**-12
"""Most of a row's mass that its belief may lack: half a rounding of fp16, an eighth of bf16's."""

FEW = 1 / 4
"""A row that needs more of a tile's blocks than this share takes all of them."""

SPREAD = 1 / 2
"""Where the other rows need more of a tile's blocks than this share, they take all of them too:
products of few rows cost nearly as much as products of many."""

MANY = 3 / 4
"""Where more rows than this share take all blocks of a tile, all rows do."""


def needed(sums: BlockSums, here: slice, floor: Tensor) -> Tensor:
    """Which blocks a row's belief needs.

    Args:
        sums: of the whole vocabulary, filled for the blocks `here`.
        floor: fp32 [N], at most the logarithm of a row's whole mass.

    Returns:
        bool [N, blocks of the tile]; True where a number is not finite.
    """
    least = math.log(LEFT_OUT / sums.top.shape[1])
    share = sums.mass[:, here].log().add_(sums.top[:, here]).sub_(floor[:, None])
    return ~(share < least)


def add_whole(weights: Tensor, table: Tensor, soft: Tensor) -> None:
    """Add all embeddings of a tile to the beliefs of all rows.

    Args:
        weights: [N, T]; those beyond the table are not read.
        table: [at most T, D].
        soft: fp32 [N, D], the sum.
    """
    soft.add_(_product(weights[:, : len(table)], table))


def add_needed(need: Tensor | None, e: Tensor, scale: Tensor, table: Tensor, soft: Tensor) -> None:
    """Add the embeddings of the needed blocks alone; see `add_whole`.

    Args:
        need: bool [N, T / 256], of `needed`; None: every block of every row.
        e, scale: fp32 [N, T / 256, 256] and [N, T / 256]; their product are the weights. `e` is
            overwritten.
    """
    split = None if need is None or bool(need.all()) else _split(need)
    if split is None:
        add_whole(_weights(e.mul_(scale[:, :, None]), table), table, soft)
        return
    dense, sparse = split
    if len(dense):
        weights = _weights(e[dense].mul_(scale[dense, :, None]), table)
        soft.index_add_(0, dense, _product(weights[:, : len(table)], table).float())
    for block in sparse.any(0).nonzero()[:, 0].tolist():
        chosen = sparse[:, block].nonzero()[:, 0]
        weights = (e[chosen, block] * scale[chosen, block, None]).to(table.dtype)
        part = table[block * BLOCK : (block + 1) * BLOCK]
        soft.index_add_(0, chosen, _product(weights[:, : len(part)], part).float())


def _split(need: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows that take a whole tile, and the pairs of row and block that others take.

    Returns:
        int64 [at most N] and bool [N, T / 256]; None: all rows take all.
    """
    rows, blocks = need.shape
    dense = need.sum(-1) > blocks * FEW
    sparse = need & ~dense[:, None]
    if int(sparse.any(0).sum()) > blocks * SPREAD:
        dense = need.any(-1)
        sparse = torch.zeros_like(need)
    chosen = dense.nonzero()[:, 0]
    return None if len(chosen) > rows * MANY else (chosen, sparse)


def _weights(e: Tensor, table: Tensor) -> Tensor:
    """The same numbers in the dtype of the table, [n, T], in kept memory."""
    rows, width = len(e), e[0].numel()
    return WORKSPACE.take("weights", rows, width, table).copy_(e.view(rows, width))


def _product(weights: Tensor, table: Tensor) -> Tensor:
    """`weights @ table` in kept memory, valid until the next one."""
    rows = len(weights)
    if rows < ROW_TILE:  # see `rows_linear`
        weights = F.pad(weights, (0, 0, 0, ROW_TILE - rows))
    part = WORKSPACE.take("part", len(weights), table.shape[1], table)
    return torch.mm(weights, table, out=part)[:rows]
