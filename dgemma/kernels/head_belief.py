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


def add_needed(need: Tensor, weights: Tensor, table: Tensor, soft: Tensor) -> int:
    """Add the embeddings of the needed blocks alone; see `add_whole`.

    Args:
        need: bool [N, T / 256], of `needed`.

    Returns:
        How many pairs of a row and an id were multiplied.
    """
    rows, blocks = need.shape
    if bool(need.all()):
        add_whole(weights, table, soft)
        return rows * len(table)
    each = need.sum(-1)
    takes_all = each > blocks * FEW
    dense = takes_all.nonzero()[:, 0]
    if len(dense) > rows * MANY:
        add_whole(weights, table, soft)
        return rows * len(table)
    done = len(dense) * len(table)
    if len(dense):
        soft.index_add_(0, dense, _product(weights[dense, : len(table)], table).float())
    sparse = need & ~takes_all[:, None]
    for block in sparse.any(0).nonzero()[:, 0].tolist():
        chosen = sparse[:, block].nonzero()[:, 0]
        ids = slice(block * BLOCK, min((block + 1) * BLOCK, len(table)))
        part = _product(weights[chosen, ids], table[ids])
        soft.index_add_(0, chosen, part.float())
        done += len(chosen) * (ids.stop - ids.start)
    return done


def _product(weights: Tensor, table: Tensor) -> Tensor:
    """`weights @ table` in kept memory, valid until the next one."""
    rows = len(weights)
    if rows < ROW_TILE:  # see `rows_linear`
        weights = F.pad(weights, (0, 0, 0, ROW_TILE - rows))
    part = WORKSPACE.take("part", len(weights), table.shape[1], table)
    return torch.mm(weights, table, out=part)[:rows]
