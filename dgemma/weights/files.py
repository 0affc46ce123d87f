"""Finds a model by name and opens it: its configs, and the source of its weights.

A name is a bundled model ("nano"), a directory, or a hub name ("org/name") in the local hub cache;
nothing here uses the network (`hub.py` does). Does not know what the tensors mean.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgemma.errors import ConfigError, ModelNotFound, nearest
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import read_config
from dgemma.model.hf_generation import GenerationDefaults, read_generation_config
from dgemma.weights.safetensors import INDEX, Safetensors
from dgemma.weights.source import DTYPES, TensorSource

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

Origin = Literal["bundled", "directory", "hub cache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified set of files: configs parsed, every tensor's name and shape known.

    Attributes:
        directory: where the files are.
        config: the sizes.
        generation: the sampler's defaults.
        source: the weights, which are not read yet.
    """

    directory: Path
    config: ModelConfig
    generation: GenerationDefaults
    source: TensorSource

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.source.tensors.values())

    @property
    def dtype(self) -> str:
        """The number format that most bytes are in, in torch's word ("bfloat16") if it has one."""
        held: Counter[str] = Counter()
        for tensor in self.source.tensors.values():
            held[tensor.dtype] += tensor.nbytes
        most = held.most_common(1)[0][0] if held else ""
        return str(DTYPES.get(most, most)).removeprefix("torch.")


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
    """The directory of a model, and how it was found.

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
    source = Safetensors(directory, read_json(index) if index.exists() else None)
    return Checkpoint(directory=directory, config=config, generation=generation, source=source)
