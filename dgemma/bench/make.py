"""Writes a random checkpoint in the released layout, one shard in memory at a time.

Norms and scalars are one, matrices are normal with a variance of one over their inputs, so a layer
keeps the scale of its input. There is no tokenizer: such a checkpoint is prompted with ids.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.model.hf_generation import GenerationDefaults, write_generation_config
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import RELEASED
from dgemma.weights.files import CONFIG, GENERATION_CONFIG, INDEX, SINGLE
from dgemma.weights.names import to_checkpoint
from dgemma.weights.save import replacing

MAX_SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 24
"""Numbers drawn at a time in fp32."""

DTYPE = torch.bfloat16


def plan(config: ModelConfig, max_shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each shard: the checkpoint's names and shapes, in the network's order."""
    with torch.device("meta"):
        model = DiffusionGemma(config)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, value in model.state_dict().items():
        size = value.numel() * DTYPE.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][to_checkpoint(name)] = tuple(value.shape)
        filled += size
    return shards


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
    shards = plan(config, max_shard_bytes)
    numbers = sum(math.prod(shape) for shard in shards for shape in shard.values())
    need = numbers * DTYPE.itemsize
    with replacing(target) as fresh:
        if (free := shutil.disk_usage(fresh).free) < need * 1.01:
            raise CheckpointError(
                f"{need / 1e9:.1f} GB are needed for {target}, {free / 1e9:.1f} GB are free; "
                "take a smaller shape or another disk"
            )
        _write(fresh, config, shards, torch.Generator().manual_seed(seed))
    return target


def _write(
    directory: Path, config: ModelConfig, shards: list[dict[str, tuple[int, ...]]],
    generator: torch.Generator,
) -> None:  # fmt: skip
    defaults = GenerationDefaults(RELEASED, config.eos_token_ids, config.pad_token_id)
    documents = {
        CONFIG: write_config(replace(config, dtype=str(DTYPE).removeprefix("torch."))),
        GENERATION_CONFIG: write_generation_config(defaults),
    }
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        content = {name: draw(shape, generator) for name, shape in shard.items()}
        total += sum(tensor.nbytes for tensor in content.values())
        many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = many if len(shards) > 1 else SINGLE
        save_file(content, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        del content  # before the next shard is drawn
    if len(shards) > 1:
        documents[INDEX] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, values in documents.items():
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
