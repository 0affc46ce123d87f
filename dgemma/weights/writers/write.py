"""A checkpoint in another format, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgemma.errors import CheckpointError, InvalidRequest, nearest
from dgemma.files.write import new_file
from dgemma.model.hf_generation import OWN, write_own
from dgemma.weights.files import Checkpoint
from dgemma.weights.gguf import GgufSource
from dgemma.weights.names import to_checkpoint
from dgemma.weights.save import MAX_SHARD_BYTES, check_room, replacing, write_documents
from dgemma.weights.schemes.matching import matches
from dgemma.weights.writers.compressed import CompressedTensors, Importance
from dgemma.weights.writers.gguf_container import write_gguf
from dgemma.weights.writers.gguf_keys import FILE_TYPES, copied_keys, model_keys, text_keys
from dgemma.weights.writers.gguf_tensors import GgufTensors
from dgemma.weights.writers.plain import MAKERS, plain_pieces
from dgemma.weights.writers.stream import Piece, write_pieces
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.tensors import EXPERTS, PACKED, Tensors, class_of

Progress = Callable[[int, int], None]
Files = Mapping[str, Path | str | bytes]

FORMATS = ("int4", "int4-all", "int8", "fp8", "mxfp4", "gguf-q8_0", "gguf-q4_0")
TARGETS = (*MAKERS, "gguf")
GGUF_SUFFIX = ".gguf"


def check_target(source: Path, target: Path, gguf: bool) -> Path:
    """Where to write: a new file for GGUF, else a new or empty directory.

    Raises:
        CheckpointError: something is there, or the name does not fit the format.
    """
    target = Path(os.path.abspath(os.path.expanduser(target)))
    if target.exists() and target.resolve() == source.resolve():
        raise CheckpointError(f"{target} is the model itself; name a new place")
    if target.is_dir() and not gguf and not any(target.iterdir()):
        return target
    if os.path.lexists(target):
        raise CheckpointError(f"{target} is there already; name a new place, or remove it")
    if gguf != (target.suffix == GGUF_SUFFIX):
        what = "one file: end its name in .gguf" if gguf else "a directory: leave .gguf out"
        raise CheckpointError(f"{target} does not fit: this format is {what}")
    if gguf and not target.parent.is_dir():
        raise CheckpointError(f"the directory {target.parent} is not there; make it first")
    return target


def keeper(tensors: Tensors, patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a tensor of ours stays in 16 bits by these names, paths above it or globs.

    Raises:
        InvalidRequest: a pattern that names nothing that could be packed.
    """
    names = [
        n for n, shape in tensors.shapes.items() if class_of(n) in PACKED and len(shape) > 1
    ]  # fmt: skip
    kept: set[str] = set()
    for pattern in patterns:
        found = {
            name for name in names
            if any(matches(pattern, known) for known in _known(name))
        }  # fmt: skip
        if not found:
            modules = [known for name in names for known in _known(name)]
            hint = nearest(pattern, modules) or f"; one is {modules[0]}"
            raise InvalidRequest(f"keep: {pattern!r} names nothing that would be packed{hint}")
        kept |= found
    if kept == set(names):
        raise InvalidRequest("keep: these patterns keep everything; nothing would be packed")
    return kept.__contains__


def _known(name: str) -> tuple[str, str]:
    """Ours and the released name of a module."""
    return name.removesuffix(".weight"), to_checkpoint(name).removesuffix(".weight")


def write_packed(
    checkpoint: Checkpoint, target: Path, form: str, *, files: Files,
    keep: Sequence[str] = (), symmetric: bool = False, importance: Importance = lambda name: None,
    progress: Progress = lambda done, total: None, max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Tally:  # fmt: skip
    """Quantise a checkpoint; see `dgemma quantize`.

    Args:
        target: of `check_target`.
        form: one of `FORMATS`.
        files: others to write beside the weights, by their names.
        importance: for 4 bits.

    Raises:
        CheckpointError: a source that does not fit its config, or a target that cannot be written.
        InvalidRequest: see `keeper`.
    """
    tensors = Tensors(checkpoint)
    kept = keeper(tensors, keep)
    if form.startswith("gguf-"):
        tally = _gguf(checkpoint, tensors, target, form.removeprefix("gguf-").upper(), kept,
                      progress)  # fmt: skip
    else:
        plan = CompressedTensors(
            tensors, form, kept=kept, symmetric=symmetric, importance=importance
        )
        extra = {**_plain_extra(checkpoint), "quantization_config": plan.config()}
        _directory(checkpoint, tensors, target, plan.pieces, files, progress, extra,
                   max_shard_bytes)  # fmt: skip
        tally = plan.tally
    experts = tally.kinds[EXPERTS]
    if experts.after >= experts.before:
        tally.remarks.append("the experts did not shrink; they are most of the weights")
    return _with_source(tally, tensors)


def write_plain(
    checkpoint: Checkpoint, target: Path, to: str, *, files: Files,
    progress: Progress = lambda done, total: None, max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Tally:  # fmt: skip
    """Convert a checkpoint to a 16-bit one; see `dgemma convert`.

    Args:
        target, files: see `write_packed`.
        to: one of `TARGETS`.
    """
    tensors = Tensors(checkpoint)
    if to == "gguf":
        return _with_source(_gguf(checkpoint, tensors, target, None, None, progress), tensors)
    tally = Tally()
    pieces = list(plain_pieces(tensors, to, tally))
    extra = _plain_extra(checkpoint)
    _directory(checkpoint, tensors, target, pieces, files, progress, extra, max_shard_bytes,
               maker=MAKERS[to])  # fmt: skip
    return _with_source(tally, tensors)


def _plain_extra(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json says beside the sizes, less what it says of packed weights."""
    packed = ("quantization_config", "quantization")
    return {k: v for k, v in checkpoint.config.extra.items() if k not in packed}


def _directory(
    checkpoint: Checkpoint, tensors: Tensors, target: Path, pieces: Sequence[Piece], files: Files,
    progress: Progress, extra: Mapping[str, Any], max_shard_bytes: int, maker: str = "pt",
) -> None:  # fmt: skip
    check_room(target, sum(piece.nbytes for piece in pieces), "take another disk")
    config = replace(checkpoint.config, extra=extra)
    with replacing(target) as fresh:
        write_documents(fresh, config, checkpoint.generation, dtype=tensors.dtype, files=files)
        write_pieces(fresh, pieces, max_shard_bytes, progress, maker)


def _gguf(
    checkpoint: Checkpoint, tensors: Tensors, target: Path, kind: str | None,
    kept: Callable[[str], bool] | None, progress: Progress,
) -> Tally:  # fmt: skip
    config, generation = checkpoint.config, checkpoint.generation
    plan = GgufTensors(tensors, config, kind, kept or (lambda name: False))
    label = kind or next(word for word in plan.tally.stored if word in FILE_TYPES and word != "F32")
    keys = model_keys(config, generation, checkpoint.path.stem, label)
    source = checkpoint.source
    if isinstance(source, GgufSource):
        text = copied_keys(source.keys)
    else:
        text = text_keys(checkpoint.directory, config)
    if "tokenizer.ggml.tokens" not in text:
        plan.tally.remarks.append("the model has no tokenizer, so the file has none")
    if write_own(generation):
        plan.tally.remarks.append(
            f"GGUF has no place for {OWN}; beside the file it is read, so copy it there"
        )
    check_room(target, sum(entry.nbytes for entry in plan.entries), "take another disk")
    try:
        with new_file(target) as file:
            write_gguf(file, keys | text, plan.entries, progress)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    return plan.tally


def _with_source(tally: Tally, tensors: Tensors) -> Tally:
    """Say what the source was, where that matters; let go of it."""
    if packed := tensors.packed():
        kinds = ", ".join(f"{count} weights {kind}" for kind, count in packed.items())
        tally.remarks.append(f"the source was packed itself and was unpacked first: {kinds}")
    if tensors.rounded:
        kind = str(tensors.dtype).removeprefix("torch.")
        tally.remarks.append(
            f"{len(tensors.rounded)} tensors that are not packed had more than 16 bits and were "
            f"rounded to {kind}"
        )
    tensors.source.close()
    return tally
