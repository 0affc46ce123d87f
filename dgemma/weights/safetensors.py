"""Reads and writes safetensors: one file, or several with an index.

Opening reads the headers of all shards and no numbers, so it costs milliseconds at any size, and it
shows a truncated or missing shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.files.read import check_regular, exists, parse_json, reason
from dgemma.quant.packed import Packed
from dgemma.weights.source import StoredTensor, few, stored_dtype

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ShardTensor(StoredTensor):
    """A tensor and its place.

    Attributes:
        file: the shard.
        start: its first byte, counted from the start of the file.
    """

    file: Path
    start: int


class Safetensors:
    """The shards of a directory; see `TensorSource`.

    On a CPU their tensors are views of memory-mapped files, in private pages: writing to one never
    changes the file.
    """

    def __init__(self, directory: Path, index: Mapping[str, Any] | None) -> None:
        """
        Args:
            index: the parsed index; None if there is one file only.

        Raises:
            CheckpointError: a shard is missing, truncated or not as the index says.
        """
        self.path = directory
        self._maps: dict[Path, Tensor] = {}
        if index is not None:
            self.tensors = _indexed_tensors(directory, index)
        elif exists(directory / SINGLE):
            self.tensors = read_header(directory / SINGLE)
        else:
            raise CheckpointError(
                f"{directory} has neither {SINGLE} nor {INDEX}; only safetensors are read, so "
                f"convert other formats, or download the model again {_remedy(directory)}"
            )

    def read(self, name: str, *, keep: bool = True) -> Tensor:
        """See `TensorSource`."""
        info, maps = self.tensors[name], self._maps if keep else {}
        if info.file not in maps:
            size = info.file.stat().st_size
            maps[info.file] = torch.from_file(str(info.file), False, size, dtype=torch.uint8)
        # `safe_open` gives the same views, but touches each: 52 GB then take seconds to open.
        raw = maps[info.file][info.start : info.start + info.nbytes]
        dtype = stored_dtype(info)
        if info.start % dtype.itemsize:  # the format allows it, though nobody writes it
            raw = raw.clone()
        return raw.view(dtype).view(info.shape)

    def packed(self, name: str, *, keep: bool = True) -> Packed:
        """Nothing is packed here: what several tensors mean together is said by their scheme."""
        raise KeyError(name)

    packed_like = packed

    def close(self) -> None:
        """See `TensorSource`."""
        self._maps.clear()


def _indexed_tensors(directory: Path, index: Mapping[str, Any]) -> dict[str, ShardTensor]:
    """The tensors of a sharded checkpoint, after comparing the index with the shards."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / INDEX} has no weight_map; restore the file")
    shards = sorted({str(file) for file in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or not shard.isprintable():
            raise CheckpointError(
                f"{directory / INDEX} names {shard[:99]!r}, which is not a plain file; "
                "restore the file"
            )
    absent = [shard for shard in shards if not exists(directory / shard)]
    if absent:
        raise CheckpointError(
            f"{directory} lacks {len(absent)} of {len(shards)} shards: {few(absent)}; "
            f"download them {_remedy(directory)}"
        )
    tensors: dict[str, ShardTensor] = {}
    for shard in shards:
        for name, info in read_header(directory / shard).items():
            place = weight_map.get(name, "no shard")
            if place != shard:
                raise CheckpointError(
                    f"{directory / shard} holds {few([name])}, which {INDEX} places in "
                    f"{few([str(place)])}; index and shards are of different models"
                )
            tensors[name] = info
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(
            f"{directory / weight_map[lost[0]]} lacks {few(lost[:1])} and {len(lost) - 1} more "
            f"that {INDEX} places there; index and shards are of different models"
        )
    return tensors


def read_header(path: Path) -> dict[str, ShardTensor]:
    """Names, types and shapes in one shard, checked against the file's length.

    Raises:
        CheckpointError: truncated, no safetensors file, or unreadable.
    """
    try:
        check_regular(path)
        # The library checks every length and type but does not say the places: they are read here.
        with safe_open(path, framework="numpy") as shard:
            names = shard.offset_keys()
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(begin - 8).decode("utf-8"))
    except (OSError, ValueError, MemoryError) as error:  # no memory: the file cannot be mapped
        raise CheckpointError(
            f"cannot read {path}: {reason(error)}; download it {_remedy(path.parent)}"
        ) from error
    except SafetensorError as error:
        what = "is truncated or no safetensors file"
        with path.open("rb") as file:
            if file.read(19) == b"version https://git":
                what = "is a Git LFS pointer, not the weights"
        raise CheckpointError(
            f"{path} {what} ({path.stat().st_size:,} bytes: {error}); delete it and download it "
            f"{_remedy(path.parent)}"
        ) from error
    tensors = {}
    for name in names:
        entry = header[name]
        low, high = entry["data_offsets"]
        shape = tuple(entry["shape"])
        tensors[name] = ShardTensor(entry["dtype"], shape, high - low, path, begin + low)
    return tensors


def write_shards(
    directory: Path,
    sizes: Mapping[str, int],
    tensor: Callable[[str], Tensor],
    max_shard_bytes: int,
) -> None:
    """Write tensors to one file, or to several of about `max_shard_bytes` and an index.

    Args:
        sizes: names and bytes, in the order in which they are written.
        tensor: gives one by its name, contiguous and on a CPU; a shard of them is held at a time.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE
        save_file({n: tensor(n) for n in names}, directory / file, metadata={"format": "pt"})
        # The library makes files that only their owner can read.
        (directory / file).chmod(directory.stat().st_mode & 0o666)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX).write_text(text, encoding="utf-8")


def _remedy(directory: Path) -> str:
    """The command that brings the files of `directory` back, as well as it can be known."""
    for part in directory.parts:
        if part.startswith("models--"):
            return f"with `dgemma pull {part.removeprefix('models--').replace('--', '/', 1)}`"
    return "from where it came (`dgemma pull NAME` for a hub model)"
