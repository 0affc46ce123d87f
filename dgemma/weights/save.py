"""Writes a network as a checkpoint in the released layout, all of it or nothing.

Everything goes to a new directory beside the target first, which then takes its name: a reader sees
the old files or the new ones, never a mixture, and a failure leaves no trace.
Knows names and files; knows nothing about training or tokenizers, whose files are handed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dgemma.errors import CheckpointError
from dgemma.files.read import read_bytes
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import MODEL_TYPE, write_config
from dgemma.model.hf_generation import OWN, GenerationDefaults, write_generation_config, write_own
from dgemma.weights.files import GENERATION_CONFIG, Checkpoint, read_json
from dgemma.weights.find import CONFIG
from dgemma.weights.load import aside_names
from dgemma.weights.names import to_checkpoint
from dgemma.weights.safetensors import write_shards

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("dgemma")

MAX_SHARD_BYTES = 5_000_000_000
MOST_FILE_BYTES = 1 << 28
"""Of a file beside the weights that is copied."""
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
        dtype: of the weights in the files; None keeps each tensor's own.
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
    vision = {} if aside is None else {n: aside.source.read(n) for n in aside_names(aside.source)}
    if config.vision is not None and not vision:
        logger.warning(
            "config.json describes a vision part whose weights are not saved; other programs may "
            "fill it with random ones"
        )
    plain = {
        k: v for k, v in config.extra.items() if k not in ("quantization_config", "quantization")
    }
    config = replace(config, extra=plain)  # these weights are not packed, whatever they came from
    everything = tensors | vision
    kinds = {n: dtype if dtype and n in tensors else t.dtype for n, t in everything.items()}
    write_checkpoint(
        target,
        config,
        generation,
        {n: t.numel() * kinds[n].itemsize for n, t in everything.items()},
        lambda n: everything[n].to("cpu", kinds[n]).contiguous(),
        dtype=next(iter(kinds.values())),
        files=files,
        max_shard_bytes=max_shard_bytes,
    )
    if aside is not None:
        aside.source.close()
    return target


def write_checkpoint(
    target: Path,
    config: ModelConfig,
    generation: GenerationDefaults | None,
    sizes: Mapping[str, int],
    tensor: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    files: Mapping[str, Path | str | bytes] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write configs, weights and further files in place of all that is in `target`.

    Args:
        sizes, tensor: names, bytes and numbers of the weights; see `write_shards`.
        dtype: of most of them, for config.json.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    with replacing(target) as fresh:
        write_documents(fresh, config, generation, dtype=dtype, files=files)
        write_shards(fresh, sizes, tensor, max_shard_bytes)


def write_documents(
    directory: Path,
    config: ModelConfig,
    generation: GenerationDefaults | None,
    *,
    dtype: torch.dtype,
    files: Mapping[str, Path | str | bytes] | None = None,
) -> None:
    """Write the configs and further files of a checkpoint; see `write_checkpoint`."""
    name = str(dtype).removeprefix("torch.")
    documents = {CONFIG: _json(write_config(dataclasses.replace(config, dtype=name)))}
    if generation is not None:
        documents[GENERATION_CONFIG] = _json(write_generation_config(generation))
        if own := write_own(generation):
            documents[OWN] = _json(own)
    for file, content in {**(files or {}), **documents}.items():
        _write_file(directory / file, content)


def check_room(target: Path, need: int, remedy: str) -> None:
    """Refuse a target whose disk lacks `need` bytes, before the work is done.

    Raises:
        CheckpointError: with the remedy.
    """
    disk = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if free < need * 1.01:
        raise CheckpointError(
            f"{need / 1e9:.1f} GB are needed for {target}, {free / 1e9:.1f} GB are free; {remedy}"
        )


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
                f"{target} would be replaced, but holds {entry.name}, which is not part of a "
                f"checkpoint; {remedy}"
            )


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A fresh directory that takes the place of `target` when the block ends well."""
    # Not the target's own name, which may be as long as a name can be.
    start = f".dgemma-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}"
    mark = secrets.token_hex(4)
    fresh = target.with_name(f"{start}.saving-{mark}")
    old = target.with_name(f"{start}.replaced-{mark}")
    try:
        for abandoned in target.parent.glob(f"{start}.saving-*"):
            with _locked(abandoned) as ours:
                if ours:  # the process that made it was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
        fresh.mkdir(parents=True)
        with _locked(fresh):
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


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory; whether it could be had."""
    if fcntl is None:
        yield False
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


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
        content = read_bytes(content, MOST_FILE_BYTES)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
