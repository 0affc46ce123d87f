"""The weights in a GGUF file, or in several that were split from one; see `TensorSource`.

Tensors go by their released names, as the rest of this package knows them. Every tensor of the
files is one of those, belongs to one, or is in an error. Rows are bytes of the mapped file, plain
or packed: nothing is transposed or copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.files.gguf import TYPES, GgufError, GgufFile, GgufTensor, split_files
from dgemma.model.config import ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.json_section import shown
from dgemma.quant.gguf_blocks import FORMATS, NVFP4
from dgemma.quant.packed import Packed
from dgemma.weights.gguf_config import check_architecture, gguf_config
from dgemma.weights.gguf_names import (
    GGUF,
    HEAD,
    ROPE,
    SPLIT_EXPERTS,
    gguf_to_released,
)
from dgemma.weights.source import CODES, DTYPES, StoredTensor, few

STILL = 1e29
"""From here on a divisor of a frequency means that its pair does not turn."""


@dataclass(frozen=True, slots=True)
class GgufEntry(StoredTensor):
    """A tensor and its place.

    Attributes:
        file: where it is; `start`: its first byte there.
        scale: the numbers by which each matrix of an NVFP4 tensor is multiplied; None: by 1.
    """

    file: Path
    start: int
    scale: GgufEntry | None = None


class GgufSource:
    """See `TensorSource`. On a CPU its tensors are views of mapped files, in private pages."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file, or any of its splits.

        Raises:
            CheckpointError: the file is damaged, holds another model, or a split is missing.
        """
        try:
            paths = split_files(path)
            files = [GgufFile(one) for one in paths]
            for number, file in enumerate(files):
                _check_split(file, number, len(files))
            self.path, self.keys = paths[0], files[0]
            check_architecture(self.path, self.keys)
            self._stored = _stored(files)
        except GgufError as error:
            raise CheckpointError(str(error)) from error
        self.tensors: Mapping[str, GgufEntry] = _named(self.path, self._stored)
        self._maps: dict[Path, Tensor] = {}

    def config(self, strict: bool) -> tuple[ModelConfig, GenerationDefaults]:
        """The sizes and the sampler's defaults; see `gguf_config`.

        Raises:
            CheckpointError, ConfigError: keys and tensors that cannot be honoured.
        """
        table = self._stored.get("token_embd.weight")
        rows = table.shape[0] if table else None
        config, generation = gguf_config(self.path, self.keys, rows, self._share(), strict)
        _check_names(self.path, self._stored, config)
        return config, generation

    def read(self, name: str, *, keep: bool = True) -> Tensor:
        """See `TensorSource`."""
        info = self.tensors[name]
        return self._plain(info, keep)

    def packed(self, name: str, *, keep: bool = True) -> Packed:
        """See `TensorSource`."""
        info = self.tensors[name]
        assert info.format is not None
        *lead, rows, columns = info.shape
        parts = {"blocks": self._bytes(info, keep).view(*lead, rows, -1)}
        if info.format is NVFP4:
            scale = torch.ones(1) if info.scale is None else self._plain(info.scale, keep)
            scale = scale.view(-1, *[1] * len(lead)) if lead else scale
            parts["scale"] = scale.expand(*lead, rows).unsqueeze(-1).contiguous()
        return Packed(info.format, columns, parts)

    def close(self) -> None:
        """See `TensorSource`."""
        self._maps.clear()

    def _plain(self, info: GgufEntry, keep: bool) -> Tensor:
        raw, dtype = self._bytes(info, keep), DTYPES.get(info.dtype) or CODES[info.dtype]
        if info.start % dtype.itemsize:  # an alignment of less than 8 allows it
            raw = raw.clone()
        return raw.view(dtype).view(info.shape)

    def _bytes(self, info: GgufEntry, keep: bool) -> Tensor:
        maps = self._maps if keep else {}
        if info.file not in maps:
            size = info.file.stat().st_size
            maps[info.file] = torch.from_file(str(info.file), False, size, dtype=torch.uint8)
        return maps[info.file][info.start : info.start + info.nbytes]

    def _share(self) -> float | None:
        """The share of the pairs of full layers that turn, from what divides their frequencies.

        Raises:
            CheckpointError: they are divided by something else than 1 or without end.
        """
        info = self._stored.get(ROPE)
        if info is None:
            return None
        if info.dtype != "F32" or len(info.shape) != 1:
            raise CheckpointError(f"{self.path}: {ROPE} is not a row of F32; download it again")
        values = self._plain(info, False)
        turning = int((values == 1).sum())
        as_known = (values[:turning] == 1).all() & (values[turning:] > STILL).all()
        if not turning or not bool(as_known):
            raise CheckpointError(
                f"{self.path}: {ROPE} scales frequencies in a way that is not supported: it must "
                "hold ones and then 1e30; take another file"
            )
        return turning / len(values)


def _check_split(file: GgufFile, number: int, count: int) -> None:
    """Whether a file is the one of several that its name says."""
    given = file.get("split.no", number), file.get("split.count", count)
    if given != (number, count):
        raise CheckpointError(
            f"{file.path} has split.no {shown(given[0])} and split.count {shown(given[1])}, not "
            f"{number} and {count} as its name says. Give all splits their own names back: "
            "NAME-00001-of-00003.gguf and so on"
        )


def _stored(files: Sequence[GgufFile]) -> dict[str, GgufEntry]:
    """The tensors of all files by their own names."""
    found: dict[str, GgufEntry] = {}
    for file in files:
        for name, place in file.tensors.items():
            if name in found:
                raise CheckpointError(
                    f"{file.path} holds {few([name])}, which {found[name].file.name} has, too; "
                    "download the splits again"
                )
            found[name] = _entry(file.path, name, place)
    if (total := files[0].get("split.tensors.count", len(found))) != len(found):
        raise CheckpointError(
            f"{files[0].path}: the splits hold {len(found)} tensors, not {shown(total)}; download "
            "them again"
        )
    return found


def _entry(path: Path, name: str, place: GgufTensor) -> GgufEntry:
    form = FORMATS.get(place.kind)
    if form is not None and len(place.shape) < 2:
        raise CheckpointError(
            f"{path}: {few([name])} is a vector in {form.name}, which is not supported; take "
            "another file"
        )
    word = TYPES[place.kind][0]
    return GgufEntry(word, place.shape, place.nbytes, path, place.start, format=form)


def _named(path: Path, stored: Mapping[str, GgufEntry]) -> dict[str, GgufEntry]:
    """The tensors by their released names, with the scales that belong to them."""
    found, used = {}, {ROPE}
    for name, info in stored.items():
        released = gguf_to_released(name)
        if released is None:
            continue
        used.add(name)
        base = name.removesuffix("weight")
        if info.format is NVFP4 and base != name:
            scale = f"{base}scale"
            used.add(f"{base}input_scale")  # of activations, which stay in 16 bit
            if scale in stored and gguf_to_released(scale) is None:
                used.add(scale)
                _check_scale(path, scale, stored[scale], info)
                info = replace(info, scale=stored[scale])
        found[released] = info
    if left := [name for name in stored if name not in used]:
        raise CheckpointError(
            f"{path} holds tensors that mean nothing here: {few(left)}; take another file of "
            "DiffusionGemma, or update dgemma"
        )
    return found


def _check_scale(path: Path, name: str, scale: GgufEntry, owner: GgufEntry) -> None:
    """One number for each matrix."""
    matrices = prod(owner.shape[:-2])
    if scale.dtype != "F32" or prod(scale.shape) not in (1, matrices):
        raise CheckpointError(
            f"{path}: {name} is {scale.dtype} {list(scale.shape)}, but must hold 1 or {matrices} "
            "F32; download the file again"
        )


def _check_names(path: Path, stored: Mapping[str, GgufEntry], config: ModelConfig) -> None:
    """
    Raises:
        CheckpointError: a tensor is missing, or is of a layer that there is not.
    """
    halves = [name for name, _ in SPLIT_EXPERTS]
    expected = []
    for layer, kind in enumerate(config.layer_types):
        for pattern, _ in GGUF:
            names = [pattern]
            if "_gate_up_exps" in pattern and _of(pattern, layer) not in stored:
                names = halves
            if kind == "full_attention" and "attn_v" in pattern:
                continue
            expected += [_of(name, layer) for name in names]
    known = dict.fromkeys(expected)
    missing = [name for name in known if name not in stored]
    beyond = [n for n in stored if n not in known and n not in (ROPE, HEAD[0])]
    beyond = [n for n in beyond if gguf_to_released(n) is not None]
    if missing or beyond:
        said = [f"lacks {few(missing)}"] if missing else []
        said += [f"holds {few(beyond)}, which have no place in it"] if beyond else []
        raise CheckpointError(
            f"{path} {' and '.join(said)}; take a complete file of DiffusionGemma"
        )


def _of(pattern: str, layer: int) -> str:
    return pattern.replace(".N.", f".{layer}.")
