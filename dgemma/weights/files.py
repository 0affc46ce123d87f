"""Finds a model by name and reads everything but its weights: configs, index, headers of shards.

A name is a bundled model ("nano"), a directory, or a hub name ("org/name") in the local hub cache;
nothing here uses the network (`hub.py` does). Opening costs milliseconds at any size: of the shards
only the headers are read, which also shows a truncated or missing one.
Knows nothing about torch or what the tensors mean.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dgemma.errors import CheckpointError, ConfigError, ModelNotFound, nearest
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import read_config
from dgemma.model.hf_generation import GenerationDefaults, read_generation_config

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Origin = Literal["bundled", "directory", "hub cache"]

_ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
              "BF16": 16, "I16": 16, "U16": 16, "F4": 4}  # fmt: skip


FLOAT_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The container's words for the number formats that need no unpacking, and torch's."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is and what it looks like.

    Attributes:
        file: the shard.
        dtype: the container's word for it: "F32", "BF16", "U8", ...
        shape: as stored.
        start: its first byte, counted from the start of the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the shard."""
        return math.prod(self.shape) * _ITEM_BITS.get(self.dtype, 8) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified set of files: configs parsed, every tensor's place and shape known.

    Attributes:
        directory: where the files are.
        config: the sizes.
        generation: the sampler's defaults.
        tensors: what the shards hold, by the checkpoint's own names, in file order.
    """

    directory: Path
    config: ModelConfig
    generation: GenerationDefaults
    tensors: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The number format that most bytes are in, in torch's word ("bfloat16") if it has one."""
        held: Counter[str] = Counter()
        for tensor in self.tensors.values():
            held[tensor.dtype] += tensor.nbytes
        most = held.most_common(1)[0][0] if held else ""
        return FLOAT_NAMES.get(most, most)


def hub_cache() -> Path:
    """The local hub cache, found as huggingface-hub does."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return Path(os.path.expanduser(os.path.expandvars(value)))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(os.path.expanduser(os.path.expandvars(home))) / "hub"


def bundled_models() -> dict[str, Path]:
    """Name and directory of every model inside the package."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{CONFIG}"))}


def find_model(name: str | Path, revision: str | None = None) -> tuple[Path, Origin]:
    """The directory of a model and how it was found.

    Args:
        name: a bundled name, a directory, or a hub name in the local cache, tried in this order.
        revision: branch, tag or commit of a hub name; None means "main".

    Raises:
        ModelNotFound: none of the three; the message says what was looked for where.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)], "bundled"
    directory = Path(os.path.expanduser(name))
    if str(name) and os.path.isdir(
        directory
    ):  # unlike Path.is_dir, also for names no file could have
        return directory, "directory"
    looked = [
        f"bundled models: {', '.join(bundled) or 'none'}{nearest(str(name), bundled)}",
        f"directory: {directory.absolute()} is not there",
    ]
    remedy = "Give a directory or a hub name of the form 'org/name'"
    if _is_hub_name(str(name)):
        snapshot, reason = _cached_snapshot(str(name), revision or "main")
        if snapshot is not None:
            return snapshot, "hub cache"
        looked.append(f"hub cache: {reason}")
        remedy = f"Download it with `dgemma pull {name}`"
    lines = "\n  ".join(looked)
    raise ModelNotFound(f"no model named {str(name)!r}. Looked for it among\n  {lines}\n{remedy}.")


def _is_hub_name(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner.strip(".~") and model) and "/" not in model and "\\" not in name


def _cached_snapshot(name: str, revision: str) -> tuple[Path | None, str]:
    """The snapshot of a hub name in the cache, or None and what is not there."""
    root = hub_cache() / f"models--{name.replace('/', '--')}"
    if not os.path.isdir(root):
        return None, f"{root} is not there"
    ref = root / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = root / "snapshots" / commit
    if not (snapshot / CONFIG).is_file():
        return None, f"{root} has no complete snapshot of revision {revision!r}"
    return snapshot, ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is broken JSON: {error}; restore the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def load_config(directory: Path, strict: bool = True) -> ModelConfig:
    """The sizes of a model; its weights need not be there.

    Raises:
        ConfigError: config.json is missing, broken, or asks for something unsupported.
    """
    path = directory / CONFIG
    if not path.exists():
        raise ConfigError(f"{directory} has no {CONFIG}: it is no checkpoint directory")
    return read_config(read_json(path), strict)


def load_generation(directory: Path) -> GenerationDefaults:
    """The sampler's defaults of a model; all None where the file is absent.

    Raises:
        ConfigError: generation_config.json is broken or asks for something unsupported.
    """
    path = directory / GENERATION_CONFIG
    if not path.exists():
        return GenerationDefaults()
    return read_generation_config(read_json(path))


def open_checkpoint(directory: Path, strict: bool = True) -> Checkpoint:
    """Read the configs and the headers of all shards of a directory; no weights yet.

    Args:
        directory: see `find_model`.
        strict: see `read_config`.

    Raises:
        ConfigError: a JSON file is missing, broken, or asks for something unsupported.
        CheckpointError: a shard is missing, truncated or not what the index says.
    """
    config = load_config(directory, strict)
    generation = load_generation(directory)
    index = directory / INDEX
    if index.exists():
        tensors = _indexed_tensors(directory, read_json(index))
    elif (directory / SINGLE).exists():
        tensors = read_header(directory / SINGLE)
    else:
        raise CheckpointError(
            f"{directory} has neither {SINGLE} nor {INDEX}; only safetensors are read, so "
            f"convert other formats, or download the model again {_remedy(directory)}"
        )
    return Checkpoint(directory=directory, config=config, generation=generation, tensors=tensors)


def _indexed_tensors(directory: Path, index: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors of a sharded checkpoint, after comparing the index with the shards."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / INDEX} has no weight_map; restore the file")
    shards = sorted({str(file) for file in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{directory / INDEX} names {shard!r}, which is no plain file")
    absent = [shard for shard in shards if not (directory / shard).exists()]
    if absent:
        raise CheckpointError(
            f"{directory} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent)}; "
            f"download them {_remedy(directory)}"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(directory / shard).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{directory / shard} holds {name}, which {INDEX} places in "
                    f"{weight_map.get(name, 'no shard')}; index and shards are of different models"
                )
            tensors[name] = info
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(
            f"{directory / weight_map[lost[0]]} lacks {lost[0]} and {len(lost) - 1} more that "
            f"{INDEX} places there; index and shards are of different models"
        )
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes in one shard, checked against the file's length.

    Raises:
        CheckpointError: truncated, no safetensors file, or unreadable.
    """
    try:
        # The library checks every length and type; places it does not tell, so they are read here.
        with safe_open(path, framework="numpy") as shard:
            names = shard.offset_keys()
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(begin - 8))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
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
        start = begin + entry["data_offsets"][0]
        tensors[name] = TensorInfo(path, entry["dtype"], tuple(entry["shape"]), start)
    return tensors


def _remedy(directory: Path) -> str:
    """The command that brings the files of `directory` back, as well as it can be known."""
    for part in directory.parts:
        if part.startswith("models--"):
            return f"with `dgemma pull {part.removeprefix('models--').replace('--', '/', 1)}`"
    return "from where it came (`dgemma pull NAME` for a hub model)"
