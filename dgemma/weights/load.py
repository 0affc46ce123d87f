"""Puts the tensors of a checkpoint into a network that was built on the meta device.

Host memory: tensors go in one by one. On a CPU in the file's own dtype they are views of the
memory-mapped file (private pages: writing to a weight never changes the file), so even 52 GB open
at once and are read when first used; checkpoints under `MAP_FROM_BYTES` are copied instead, so that
nothing depends on the file later. For another dtype or device each tensor is converted in chunks
and its pages are given back, so the peak is the network plus one tensor.
Knows names and shapes; knows nothing about how a network computes, nor about packed formats.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dgemma.errors import CheckpointError
from dgemma.weights.files import FLOAT_NAMES, Checkpoint, TensorInfo
from dgemma.weights.names import is_vision, pattern, to_checkpoint, to_ours

logger = logging.getLogger("dgemma")

MAP_FROM_BYTES = 1 << 30
CHUNK = 1 << 24
"""Elements converted or checked at a time."""


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    check_finite: bool = True,
    mapped: bool | None = None,
) -> None:
    """Fill a network in place.

    Args:
        model: its `state_dict()` has our names; built under `torch.device("meta")`.
        checkpoint: see `open_checkpoint`.
        device: where the weights go.
        dtype: what they become; None keeps each tensor's own.
        check_finite: read every weight once and refuse NaN and infinity. False leaves mapped
            weights unread until they are used.
        mapped: keep views of the file where dtype and device allow it; None: from 1 GiB on.

    Raises:
        CheckpointError: one report of all missing, unexpected and mis-shaped tensors; a packed
            format; or a weight that is not finite. The network is not to be used then.
    """
    device = torch.device(device)
    wanted = {to_checkpoint(name): value.shape for name, value in model.state_dict().items()}
    _refuse_packed(checkpoint)
    aside = [name for name in checkpoint.tensors if is_vision(to_ours(name) or "")]
    _compare(wanted, checkpoint, aside)
    if aside:
        size = sum(checkpoint.tensors[name].nbytes for name in aside) / 1e9
        logger.info("%d vision tensors (%.2f GB) left aside: text only", len(aside), size)
    if mapped is None:
        mapped = checkpoint.nbytes >= MAP_FROM_BYTES
    mapped = mapped and device.type == "cpu"
    maps: dict[Path, Tensor] = {}
    for name in wanted:
        info = checkpoint.tensors[name]
        kept = mapped and dtype in (None, _stored_dtype(info))
        # What is copied gets a mapping of its own: only with its mapping go the pages it read.
        source = target = _view(info, maps if kept else {})
        if not kept:
            target = torch.empty(source.shape, dtype=dtype or source.dtype, device=device)
        _fill(name, target, source, check_finite)
        _assign(model, to_ours(name) or "", target)


def aside_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that `load_weights` leaves aside, by the checkpoint's names, memory-mapped."""
    maps: dict[Path, Tensor] = {}
    return {
        name: _view(info, maps)
        for name, info in checkpoint.tensors.items()
        if is_vision(to_ours(name) or "")
    }


def _stored_dtype(info: TensorInfo) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, FLOAT_NAMES[info.dtype])
    return dtype


def _view(info: TensorInfo, maps: dict[Path, Tensor]) -> Tensor:
    """A tensor in its file, none of which is read yet; `maps` has the files mapped so far."""
    if info.file not in maps:
        size = info.file.stat().st_size
        maps[info.file] = torch.from_file(str(info.file), False, size, dtype=torch.uint8)
    # `safe_open` gives the same views, but touches each: 52 GB then take seconds to open.
    raw = maps[info.file][info.start : info.start + info.nbytes]
    dtype = _stored_dtype(info)
    if info.start % dtype.itemsize:  # the format allows it, though nobody writes it
        raw = raw.clone()
    return raw.view(dtype).view(info.shape)


def _fill(name: str, target: Tensor, source: Tensor, check_finite: bool) -> None:
    """Copy `source` into `target` (which may be the same) chunk by chunk, checking on the way."""
    if target is source and not check_finite:
        return
    into, out_of = target.view(-1), source.view(-1)
    for low in range(0, out_of.shape[0], CHUNK):
        piece = into[low : low + CHUNK]
        if target is not source:
            piece.copy_(out_of[low : low + CHUNK])
        if check_finite and not bool(torch.isfinite(torch.stack(torch.aminmax(piece))).all()):
            converted = "" if target.dtype == source.dtype else f" as {target.dtype}"
            raise CheckpointError(
                f"{name} holds NaN or infinity{converted}; the file is damaged or the training "
                "diverged: take another checkpoint"
            )


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by `value` itself, without a copy."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(owner, leaf, value)


def _refuse_packed(checkpoint: Checkpoint) -> None:
    for key in ("quantization_config", "quantization"):
        if key in checkpoint.config.extra:
            method = checkpoint.config.extra[key].get("quant_method", "packed")
            raise CheckpointError(
                f"{checkpoint.directory} holds {method} weights, which are not supported yet; take "
                "the BF16 checkpoint"
            )


def _compare(wanted: Mapping[str, torch.Size], checkpoint: Checkpoint, aside: list[str]) -> None:
    """One error for all that does not fit between the network and the files."""
    held = checkpoint.tensors
    known = {*wanted, *aside}
    problems = {
        "missing": _grouped((name, "") for name in wanted if name not in held),
        "unexpected": _grouped((name, "") for name in held if name not in known),
        "mis-shaped": _grouped(
            (name, f" is {list(held[name].shape)}, the config wants {list(shape)}")
            for name, shape in wanted.items()
            if name in held and held[name].shape != tuple(shape)
        ),
        "not in floating point": _grouped(
            (name, f" is {held[name].dtype}")
            for name in (*wanted, *aside)
            if name in held and held[name].dtype not in FLOAT_NAMES
        ),
    }
    lines = [f"\n  {kind}: {line}" for kind, group in problems.items() for line in group]
    if lines:
        raise CheckpointError(
            f"the weights in {checkpoint.directory} do not fit its config.json:{''.join(lines)}\n"
            "Both must come from one checkpoint; download it again, or restore the file that "
            "was changed."
        )


def _grouped(found: Iterable[tuple[str, str]]) -> list[str]:
    """Lines `name remark`, one for all layers that have the same to say."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, remark in found:
        known, layer = pattern(name)
        groups.setdefault((known, remark), []).append(layer)
    return [
        name.replace(".N.", f".{','.join(layers)}.") + remark
        for (name, remark), layers in groups.items()
    ]
