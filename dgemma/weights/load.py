"""Puts the tensors of a checkpoint into a network that was built on the meta device.

Host memory: tensors go in one by one. On a CPU in the file's own dtype they are views of the
memory-mapped file, so even 52 GB open at once and are read when first used; checkpoints under
`MAP_FROM_BYTES` are copied instead, so that nothing depends on the file later. A tensor that is
converted, moved or put together from parts is copied in chunks and its pages are given back, so the
peak is the network plus one tensor.
Knows names and shapes; knows nothing about how a network computes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from dgemma.errors import CheckpointError
from dgemma.quant.modules import keeps_packed, put
from dgemma.quant.packed import Format, Packed, joined, stacked
from dgemma.weights.files import Checkpoint
from dgemma.weights.names import Index, copy_of, is_vision, layouts, to_ours
from dgemma.weights.source import DTYPES, TensorSource, few

logger = logging.getLogger("dgemma")

MAP_FROM_BYTES = 1 << 30
CHUNK = 1 << 24
"""Elements converted or checked at a time."""

MOST_LINES = 40
"""Of a report."""

NOT_FINITE = {torch.float8_e4m3fn: (127, 127), torch.float8_e8m0fnu: (255, 255)}
"""NaN by its bits: a mask of the byte, and what is left of it. These formats have no infinity."""

Layout = dict[str, Index]
"""The tensors of a file that one of ours is made of, and the part that each is."""


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    check_finite: bool = True,
    mapped: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill a network in place.

    Args:
        model: its `state_dict()` has our names; built under `torch.device("meta")`.
        checkpoint: see `open_checkpoint`.
        device: of the weights from now on.
        dtype: their new one; None keeps each tensor's own.
        check_finite: read every weight once and refuse NaN and infinity. False leaves mapped
            weights unread until they are used.
        mapped: keep views of the file if dtype and device allow it; None: from 1 GiB on.
        progress: called after each tensor with the bytes that are loaded, and all of them.

    Raises:
        CheckpointError: one report of all missing, unexpected and mis-shaped tensors, or a
            weight that is not finite. The network is not to be used then.
    """
    device = torch.device(device)
    source, wanted = checkpoint.source, model.state_dict()
    aside = aside_names(source)
    chosen = _compare(wanted, checkpoint, aside)
    if aside:
        size = sum(source.tensors[name].nbytes for name in aside) / 1e9
        logger.info("%d vision tensors (%.2f GB) left aside: text only", len(aside), size)
    _check_copies(source)
    if mapped is None:
        mapped = checkpoint.nbytes >= MAP_FROM_BYTES
    mapped = mapped and device.type == "cpu"
    total = sum(source.tensors[part].nbytes for parts in chosen.values() for part in parts)
    done = 0
    for name, parts in chosen.items():
        first = next(iter(parts))
        if any(source.tensors[part].format for part in parts):
            _load_packed(model, name, parts, source, device, dtype, check_finite, mapped)
            done += sum(source.tensors[part].nbytes for part in parts)
            progress(done, total)
            continue
        stored = DTYPES[source.tensors[first].dtype]
        becomes = dtype if dtype is not None and stored.is_floating_point else stored
        if mapped and becomes == stored and len(parts) == 1:
            target = source.read(first)
            _fill(first, target, target, check_finite)
        else:
            target = torch.empty(wanted[name].shape, dtype=becomes, device=device)
            for part, index in parts.items():
                _fill(part, target[index], source.read(part, keep=False), check_finite)
        _assign(model, name, target)
        done += sum(source.tensors[part].nbytes for part in parts)
        progress(done, total)


def aside_names(source: TensorSource) -> list[str]:
    """The tensors that `load_weights` leaves aside."""
    return [name for name in source.tensors if is_vision(to_ours(name) or "")]


def _copies(source: TensorSource) -> dict[str, str]:
    """The tensors that repeat another of the files, and which."""
    held = source.tensors
    pairs = ((name, copy_of(name) or "") for name in held)
    return {
        name: twin
        for name, twin in pairs
        if twin in held and (held[twin].format or held[twin].dtype in DTYPES)
    }


def _check_copies(source: TensorSource) -> None:
    """Leave aside what is written twice; refuse a copy that is none, for only one is computed."""
    copies = _copies(source)
    for name, twin in copies.items():
        one, other = source.tensors[name], source.tensors[twin]
        alike = (one.dtype, one.shape, one.format) == (other.dtype, other.shape, other.format)
        if not alike or not _equal(source, name, twin):
            raise CheckpointError(
                f"{name} differs from {twin} in {source.path}, but these weights are tied in this "
                "network; train with tied weights, or remove the one that is not meant"
            )
    if copies:
        logger.info("%d tensors that repeat others left aside: %s", len(copies), few(list(copies)))


def _equal(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors hold the same bytes, read chunk by chunk."""
    if source.tensors[one].format is None:
        pairs = [[source.read(name, keep=False) for name in (one, other)]]
    else:
        parts = [source.packed(name, keep=False).parts for name in (one, other)]
        pairs = [[part[word] for part in parts] for word in parts[0]]
    flat = ([whole.reshape(-1).view(torch.uint8) for whole in pair] for pair in pairs)
    pieces = (zip(*(torch.split(whole, CHUNK) for whole in pair), strict=True) for pair in flat)
    return all(torch.equal(a, b) for pair in pieces for a, b in pair)


def _fill(name: str, target: Tensor, source: Tensor, check_finite: bool) -> None:
    """Copy `source` into `target` (which may be the same) chunk by chunk, checking on the way."""
    if target is source and not check_finite:
        return
    if not target.is_contiguous():  # some rows of every expert
        for inner, piece in zip(target, source, strict=True):
            _fill(name, inner, piece, check_finite)
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


def arrangement(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Layout]:
    """How the files hold each tensor of a network, by our names.

    Raises:
        CheckpointError: see `load_weights`.
    """
    return _compare(model.state_dict(), checkpoint, aside_names(checkpoint.source))


def packed_formats(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Format]:
    """The weights that the files hold packed, each in one format, by our names.

    Raises:
        CheckpointError: see `load_weights`.
    """
    held, chosen = checkpoint.source.tensors, arrangement(model, checkpoint)
    found = {name: {held[part].format for part in parts} for name, parts in chosen.items()}
    return {
        name: form
        for name, formats in found.items()
        if len(formats) == 1 and (form := next(iter(formats))) is not None
    }


def _load_packed(
    model: nn.Module, name: str, parts: Layout, source: TensorSource, device: torch.device,
    dtype: torch.dtype | None, check_finite: bool, mapped: bool,
) -> None:  # fmt: skip
    """Put packed numbers into a module that keeps them, or unpack them into a plain one."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if keeps_packed(owner):
        packed = _assembled([(i, source.packed(part, keep=mapped)) for part, i in parts.items()])
        if not mapped and len(parts) == 1:
            packed = packed.clone()  # so that nothing depends on the file later
        if check_finite:
            _check_finite(next(iter(parts)), packed)
        put(owner, leaf, packed.to(device))
        return
    shape = model.state_dict()[name].shape
    target = torch.empty(shape, dtype=dtype or torch.float32, device=device)
    for part, index in parts.items():
        if source.tensors[part].format is None:
            _fill(part, target[index], source.read(part, keep=False), check_finite)
        else:
            _unpack(part, target[index], source.packed(part, keep=False), check_finite)
    _assign(model, name, target)


def _check_finite(name: str, packed: Packed) -> None:
    """Refuse NaN and infinity in scales and in codes of 8-bit floats, without unpacking them."""
    for part in packed.parts.values():
        if part.dtype in (torch.float32, torch.float16, torch.bfloat16):
            _fill(name, part, part, check_finite=True)
        elif part.dtype in NOT_FINITE:
            mask, worst = NOT_FINITE[part.dtype]
            for piece in torch.split(part.view(torch.uint8).flatten(), CHUNK):
                if bool(((piece & mask) == worst).any()):
                    raise CheckpointError(
                        f"{name} holds NaN in its codes or scales; the file is damaged: take "
                        "another checkpoint"
                    )


def _assembled(pieces: list[tuple[Index, Packed]]) -> Packed:
    """One tensor of ours from the parts that a file has it in."""
    experts: dict[int | None, list[Packed]] = {}
    for index, packed in pieces:
        first = index[0] if index else None
        experts.setdefault(first if isinstance(first, int) else None, []).append(packed)
    whole = [joined(rows) for rows in experts.values()]
    return whole[0] if None in experts else stacked(whole)


def _unpack(name: str, target: Tensor, packed: Packed, check_finite: bool) -> None:
    """Fill `target` with unpacked numbers, some rows at a time."""
    if target.dim() > 2:
        for number, matrix in enumerate(target):
            _unpack(name, matrix, packed[number], check_finite)
        return
    step = max(1, CHUNK // max(1, packed.columns))
    for low in range(0, target.shape[0], step):
        piece = packed[low : low + step].dequantise(target.dtype)
        _fill(name, target[low : low + step], piece, check_finite)


def _compare(
    wanted: Mapping[str, Tensor], checkpoint: Checkpoint, aside: list[str]
) -> dict[str, Layout]:
    """How the files hold each of our tensors; one error for all that does not fit.

    Every tensor of the files is used once, or is in the error.
    """
    held = checkpoint.source.tensors
    # Of several ways to hold a tensor the files follow one: that of which they have most.
    chosen = {
        name: max(layouts(name, value.shape), key=lambda way: sum(n in held for n in way))
        for name, value in wanted.items()
    }
    parts = [(n, wanted[name][i]) for name, way in chosen.items() for n, i in way.items()]
    parts += [(n, torch.empty(held[n].shape, device="meta")) for n in aside]
    there = [(n, held[n], part) for n, part in parts if n in held]
    known = {n for n, _ in parts} | _copies(checkpoint.source).keys()
    problems = {
        "missing": ((n, "") for n, _ in parts if n not in held),
        "unexpected": ((n, "") for n in held if n not in known),
        "mis-shaped": (
            (n, f" is {list(info.shape)}, the config wants {list(part.shape)}")
            for n, info, part in there
            if info.shape != tuple(part.shape)
        ),
        "not in floating point": (
            (n, f" is {info.dtype}")
            for n, info, part in there
            if part.is_floating_point() and not info.floating
        ),
        "of the wrong type": (
            (n, f" is {info.dtype}, the network wants {part.dtype}")
            for n, info, part in there
            if not part.is_floating_point() and DTYPES.get(info.dtype) != part.dtype
        ),
    }
    lines = [f"\n  {kind}: {x}" for kind, found in problems.items() for x in _grouped(found)]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"\n  and {len(lines) - MOST_LINES} lines more"]
    if lines:
        config = "metadata" if checkpoint.source.path.is_file() else "config.json"
        raise CheckpointError(
            f"the weights in {checkpoint.source.path} do not fit its {config}:{''.join(lines)}\n"
            "Both must come from one checkpoint; download it again, or restore the changed file."
        )
    return chosen


def _grouped(found: Iterable[tuple[str, str]]) -> list[str]:
    """Lines `name remark`, one for all experts and layers that have the same to say."""
    for word in ("experts", "layers"):
        groups: dict[tuple[str, str, str], list[str]] = {}
        for name, remark in found:
            match = re.fullmatch(rf"(.*\b{word}\.)(\d+)(\..*)", name)
            before, number, after = match.groups() if match else (name, "", "")
            groups.setdefault((before, after, remark), []).append(number)
        found = [(a + ",".join(numbers) + b, remark) for (a, b, remark), numbers in groups.items()]
    return [few([name], characters=1000) + remark for name, remark in found]
