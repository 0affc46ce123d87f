"""Writes a network as a checkpoint in the released layout, all of it or nothing.

Everything goes to a new directory beside the target first, which then takes its name: a reader sees
the old files or the new ones, never a mixture, and a failure leaves nothing behind.
Knows names and files; knows nothing about training or tokenizers, whose files are handed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dgemma.errors import CheckpointError
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import MODEL_TYPE, write_config
from dgemma.model.hf_generation import GenerationDefaults, write_generation_config
from dgemma.weights.files import CONFIG, GENERATION_CONFIG, INDEX, SINGLE, Checkpoint, read_json
from dgemma.weights.load import aside_tensors
from dgemma.weights.names import to_checkpoint

logger = logging.getLogger("dgemma")

MAX_SHARD_BYTES = 5_000_000_000
KINDS = (".safetensors", ".json", ".jinja", ".md", ".model", ".txt")
"""Endings of files that a checkpoint directory may hold, beside LICENSE and NOTICE."""


def save_weights(
    model: nn.Module,
    directory: str | Path,
    *,
    config: ModelConfig,
    generation: GenerationDefaults | None = None,
    files: Mapping[str, Path | str | bytes] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    aside: Checkpoint | None = None,
) -> Path:
    """Write config.json, generation_config.json and the weights of `model`.

    Args:
        model: its `state_dict()` has our names.
        directory: the target. It may be absent, empty, or a checkpoint, which is replaced as a
            whole: files of it that are wanted again are to be given in `files`.
        config: the sizes; its `dtype` is set to that of the weights.
        generation: the sampler's defaults; None leaves generation_config.json out.
        files: name and content (text, bytes) or source of further files: the tokenizer, a card.
        dtype: what the weights become on the way; None keeps each tensor's own.
        max_shard_bytes: beyond this the weights go to several files with an index.
        aside: the checkpoint that `model` came from; the vision tensors that loading left aside
            are copied from it.

    Returns:
        The directory.

    Raises:
        CheckpointError: the directory holds something else, or cannot be written.
    """
    target = Path(os.path.expanduser(directory)).resolve()
    _refuse_foreign(target)
    tensors: dict[str, Tensor] = {
        to_checkpoint(name): value.detach() for name, value in model.state_dict().items()
    }
    assert not any(tensor.is_meta for tensor in tensors.values()), "the network has no weights yet"
    saved_dtype = str(dtype or next(iter(tensors.values())).dtype).removeprefix("torch.")
    vision = {} if aside is None else aside_tensors(aside)
    if config.vision is not None and not vision:
        logger.warning(
            "config.json describes a vision part whose weights are not saved; other programs may "
            "fill it with random ones"
        )
    values = write_config(dataclasses.replace(config, dtype=saved_dtype))
    documents = {CONFIG: _json(values)}
    if generation is not None:
        documents[GENERATION_CONFIG] = _json(write_generation_config(generation))
    with replacing(target) as fresh:
        for name, content in {**(files or {}), **documents}.items():
            _write_file(fresh / name, content)
        _write_shards(fresh, tensors, vision, dtype, max_shard_bytes)
    return target


def _refuse_foreign(target: Path) -> None:
    """Only an absent or empty directory or a checkpoint may be replaced."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; save to a directory")
    entries = sorted(target.iterdir())
    if not entries:
        return
    remedy = "save to a new or empty directory"
    config = target / CONFIG
    if not config.is_file() or read_json(config).get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{target} is not empty and no checkpoint of this family; {remedy}")
    for entry in entries:
        known = entry.suffix in KINDS or entry.name.startswith(("LICENSE", "NOTICE", "."))
        if not known or not entry.is_file():
            raise CheckpointError(
                f"{target} would be replaced, but holds {entry.name}, which is no part of a "
                f"checkpoint; {remedy}"
            )


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A fresh directory that takes the place of `target` when the block ends well."""
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    fresh = target.with_name(f".{target.name}.saving-{mark}")
    old = target.with_name(f".{target.name}.replaced-{mark}")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _write_file(path: Path, content: Path | str | bytes) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _write_shards(
    directory: Path,
    tensors: Mapping[str, Tensor],
    vision: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """The weights in one file, or in several of about `max_shard_bytes` and an index.

    One shard at a time is converted, so the peak is the network plus a shard. Vision tensors are
    copied as they are.
    """
    shards: list[list[str]] = [[]]
    filled = total = 0
    everything = {**tensors, **vision}
    for name, tensor in everything.items():
        width = dtype.itemsize if dtype is not None and name in tensors else tensor.itemsize
        size = tensor.numel() * width
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
        total += size
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        content = {name: everything[name].to(device="cpu") for name in names}
        for name in names:
            if dtype is not None and name in tensors:
                content[name] = content[name].to(dtype)
            content[name] = content[name].contiguous()
            weight_map[name] = file
        save_file(content, directory / file, metadata={"format": "pt"})
        # The library makes files that only their owner can read.
        (directory / file).chmod((directory / CONFIG).stat().st_mode)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_index(directory, index)


def _write_index(directory: Path, index: Mapping[str, Any]) -> None:
    (directory / INDEX).write_text(_json(index), encoding="utf-8")
