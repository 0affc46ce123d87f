"""The forward process: which canvas, how much noise, which ids.

A position keeps its id with probability 1 - t, else it becomes a uniform id of the whole
vocabulary, control ids included. Every draw comes from a generator seeded by recipe seed, step and
part, never from global state. Knows nothing about the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.train.data import TrainingBatch


@dataclass(frozen=True, slots=True)
class Noised:
    """M noisy canvases over B encoded rows.

    Attributes:
        rows: [M] the encoded row of each canvas.
        starts: [M] position of its first token, and how many encoded tokens it may see.
        clean, noisy: [M, C].
        earlier: [M, C] with more noise: the canvas of the step before, with other noise.
        noise: [M, C] what a position becomes that is not kept.
        t: [M] noise levels.
        open: bool [M, C], the positions that noise might have hit; None: all.
    """

    rows: Tensor
    starts: Tensor
    clean: Tensor
    noisy: Tensor
    earlier: Tensor
    noise: Tensor
    t: Tensor
    open: Tensor | None = None


def generator_for(seed: int, step: int, part: int) -> torch.Generator:
    """The random stream of one part of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + part)


def corrupt(
    batch: TrainingBatch,
    canvases: int,
    vocab_size: int,
    power: float,
    generator: torch.Generator,
    full_noise_share: float = 0.0,
) -> Noised:
    """Draw `canvases` noisy canvases for every row of a batch.

    Args:
        power: noise levels are t = u^power with u uniform in (0.001, 1]: 1.0 is the released
            recipe, below 1.0 leans towards noisy canvases.
        full_noise_share: share of the canvases with t = 1, as every canvas begins.
    """
    targets, blocks = torch.from_numpy(batch.targets), torch.from_numpy(batch.blocks)
    rows = torch.arange(targets.shape[0]).repeat(canvases)
    block = (torch.rand(rows.shape, generator=generator) * blocks[rows]).long()
    clean = targets[rows, block]
    width = clean.shape[1]
    t = (0.001 + 0.999 * torch.rand(rows.shape, generator=generator)) ** power
    noise = torch.randint(vocab_size, clean.shape, generator=generator)
    starts = torch.from_numpy(batch.prompt_lengths)[rows] + block * width
    t = t.masked_fill(torch.rand(rows.shape, generator=generator) < full_noise_share, 1.0)
    hit = torch.rand(clean.shape, generator=generator) < t[:, None]
    share = torch.rand(rows.shape, generator=generator)  # of what is kept, noise a step before
    before = hit | (torch.rand(clean.shape, generator=generator) < share[:, None])
    other = torch.randint(vocab_size, clean.shape, generator=generator)
    scored = None
    if batch.open is not None:
        scored = torch.from_numpy(batch.open)[rows, block]
        hit, before = hit & scored, before & scored
    noisy, earlier = torch.where(hit, noise, clean), torch.where(before, other, clean)
    return Noised(rows, starts, clean, noisy, earlier, noise, t, scored)
