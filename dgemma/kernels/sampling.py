"""How one uniform picks a token: sums over fixed blocks of 256 ids, and the inverse CDF on them.

The V ids are cut into fixed blocks of 256. A block is known by its largest logit and by sums of
`exp(logit - largest)` over exactly its own columns (fp32). Blocks are put together in fp64: the
uniform picks a block by inverse CDF, and its remainder picks an id inside that block. No
number depends on how many rows or columns are worked on at a time, so a streamed kernel needs to
keep only three numbers a block, and any tiling gives the same token.

Knows nothing about tables, temperatures, canvases or the source of the uniforms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.device import wide

BLOCK = 256
"""Ids in a block of the inverse CDF. Part of the meaning of a seed: never change it."""

LOWEST = torch.finfo(torch.float32).min


class BlockSums(NamedTuple):
    """All that the inverse CDF and the entropy need to know of the logits.

    Attributes:
        top: fp32 [N, V/256], the largest logit of each block (finite also if all are -inf).
        mass: fp32 [N, V/256], sum of e = exp(logit - top) over the block.
        moment: fp32 [N, V/256], sum of e * (logit - top) over the block.
    """

    top: Tensor
    mass: Tensor
    moment: Tensor

    @staticmethod
    def empty(rows: int, size: int, device: torch.device) -> BlockSums:
        """Uninitialised sums of `rows` rows over a vocabulary of `size` ids."""
        shape = (rows, -(-size // BLOCK))
        return BlockSums(*(torch.empty(shape, device=device) for _ in range(3)))


def as_blocks(logits: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / 256), 256], filled up with -inf; a view if nothing is missing."""
    rows, size = logits.shape
    if size % BLOCK:
        logits = F.pad(logits, (0, -size % BLOCK), value=-torch.inf)
    return logits.view(rows, -1, BLOCK)


def block_sums(logits: Tensor) -> BlockSums:
    """The sums of each block of 256 ids: fp32 [N, V] -> three times [N, ceil(V / 256)]."""
    blocks = as_blocks(logits)  # [N, V/256, 256]
    top = blocks.amax(-1).clamp_(min=LOWEST)
    below = blocks - top[:, :, None]
    e = below.exp()
    # A suppressed id is at -inf, where e * below would be 0 * inf.
    return BlockSums(top, e.sum(-1), below.clamp_(min=LOWEST).mul_(e).sum(-1))


def entropy(sums: BlockSums) -> Tensor:
    """Nats of each row, fp32 [N]; NaN if a logit is not finite or no id is left."""
    top, weight, scale = _together(sums)
    moment = (wide(sums.moment) + wide(sums.mass) * (wide(sums.top) - top)) * scale
    total = weight.sum(-1)
    nats = (total.log() - moment.sum(-1) / total).clamp_(min=0.0)
    # Where all ids of a row are at -inf its largest logit is the lowest finite number.
    return nats.where(top[:, 0] > LOWEST, torch.nan).float()


def log_total(sums: BlockSums) -> Tensor:
    """Logarithm of the sum of exp over all logits, fp32 [N]."""
    top, weight, _ = _together(sums)
    return (top[:, 0] + weight.sum(-1).log()).float()


def total(sums: BlockSums, top: Tensor) -> Tensor:
    """Sum of exp(logit - top) over all logits, fp32 [N]; top: fp32 [N]."""
    scale = (wide(sums.top) - wide(top)[:, None]).exp()
    return (wide(sums.mass) * scale).sum(-1).float()


def pick(logits: Tensor, sums: BlockSums, uniforms: Tensor) -> Tensor:
    """One id a row by inverse CDF, first over blocks and then inside one.

    Args:
        logits: fp32 [N, V].
        sums: of these logits.
        uniforms: fp32 [N], uniforms in [0, 1).

    Returns:
        int64 [N]; an id of probability zero is never picked. Rows with NaN give some id.
    """
    block, rest = pick_block(sums, uniforms)
    rows = torch.arange(len(uniforms), device=uniforms.device)
    inside = as_blocks(logits)[rows, block]  # [N, 256]
    return block * BLOCK + pick_inside(inside, rest)


def pick_block(sums: BlockSums, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The first block whose cumulated mass exceeds key * total.

    Returns:
        int64 [N] the block, and fp64 [N] in [0, 1) how far into it the key reaches.
    """
    _, weight, _ = _together(sums)
    reached = weight.cumsum(-1)
    target = wide(uniforms) * reached[:, -1]
    block = (reached <= target[:, None]).sum(-1).clamp_(max=reached.shape[1] - 1)
    before = F.pad(reached, (1, 0)).gather(1, block[:, None])[:, 0]
    rest = (target - before) / weight.gather(1, block[:, None])[:, 0]
    return block, rest.clamp_(0.0, 1 - torch.finfo(rest.dtype).eps / 2)


def pick_inside(logits: Tensor, rest: Tensor) -> Tensor:
    """The first id of one block whose cumulated mass exceeds rest * total.

    Args:
        logits: fp32 [N, 256], the block's own; -inf beyond the vocabulary.
        rest: fp64 [N] of `pick_block`.

    Returns:
        int64 [N] in [0, 256).
    """
    top = logits.amax(-1, keepdim=True).clamp_(min=LOWEST)
    reached = wide((logits - top).exp()).cumsum(-1)
    inside = (reached <= (rest * reached[:, -1])[:, None]).sum(-1)
    return inside.clamp_(max=BLOCK - 1)


def _together(sums: BlockSums) -> tuple[Tensor, Tensor, Tensor]:
    """fp64: the row's largest logit [N, 1], each block's mass on the row's scale and the scale."""
    top = wide(sums.top).amax(-1, keepdim=True)
    scale = (wide(sums.top) - top).exp()
    return top, wide(sums.mass) * scale, scale
