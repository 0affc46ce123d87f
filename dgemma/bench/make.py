"""Writes a random checkpoint in the released layout, one shard in memory at a time.

Norms and scalars are one, matrices are normal with a variance of one over their inputs, so a layer
keeps the scale of its input. There is no tokenizer: such a checkpoint is prompted with ids.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.model.config import ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import RELEASED
from dgemma.weights.names import to_checkpoint
from dgemma.weights.save import check_room, write_checkpoint

MAX_SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 24
"""Numbers drawn at a time in fp32."""

DTYPE = torch.bfloat16


def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A parameter: ones, or for matrices normal numbers of std fan_in^-0.5."""
    out = torch.ones(shape, dtype=DTYPE)
    if len(shape) > 1:
        std = shape[-1] ** -0.5
        for piece in torch.split(out.view(-1), CHUNK):
            piece.copy_(torch.randn(len(piece), generator=generator).mul_(std))
    return out


def make(
    config: ModelConfig,
    directory: str | Path,
    *,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the checkpoint; the directory appears when it is complete.

    Args:
        config: the sizes; its dtype becomes bfloat16.
        directory: absent or empty.
        seed: of the weights.
        max_shard_bytes: most bytes of a shard, so about the memory that is needed.

    Raises:
        CheckpointError: the directory holds something, the disk is too full, or cannot be written.
    """
    target = Path(os.path.expanduser(directory)).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(f"{target} holds something already; name a new or empty directory")
    with torch.device("meta"):
        state = DiffusionGemma(config).state_dict()
    shapes = {to_checkpoint(name): tuple(value.shape) for name, value in state.items()}
    sizes = {name: torch.Size(shape).numel() * DTYPE.itemsize for name, shape in shapes.items()}
    check_room(target, sum(sizes.values()), "take a smaller shape or another disk")
    generator = torch.Generator().manual_seed(seed)
    write_checkpoint(
        target,
        config,
        GenerationDefaults(RELEASED, config.eos_token_ids, config.pad_token_id),
        sizes,
        lambda name: draw(shapes[name], generator),
        dtype=DTYPE,
        max_shard_bytes=max_shard_bytes,
    )
    return target
