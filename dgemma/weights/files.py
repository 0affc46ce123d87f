"""Opens a checkpoint, a directory or a GGUF file: its configs, and the source of its weights.

Does not know what the tensors mean.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgemma.errors import ConfigError
from dgemma.files import read
from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import read_config
from dgemma.model.hf_generation import (
    OWN,
    GenerationDefaults,
    read_generation_config,
    read_own,
)
from dgemma.weights.find import CONFIG
from dgemma.weights.gguf import GgufSource
from dgemma.weights.safetensors import INDEX, Safetensors
from dgemma.weights.schemes import QUANT_CONFIG, read_packed
from dgemma.weights.source import DTYPES, TensorSource

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified set of files: configs parsed, every tensor's name and shape known.

    Attributes:
        directory: of the files.
        config: the sizes.
        generation: the sampler's defaults.
        source: the weights, which are not read yet.
    """

    directory: Path
    config: ModelConfig
    generation: GenerationDefaults
    source: TensorSource

    @property
    def path(self) -> Path:
        """The checkpoint itself: its directory, or its GGUF file."""
        return self.source.path

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.source.tensors.values())

    @property
    def dtype(self) -> str:
        """That of most bytes, in torch's word if it has one; "bfloat16" if any are packed."""
        held: Counter[str] = Counter()
        if any(tensor.format for tensor in self.source.tensors.values()):
            return "bfloat16"
        for tensor in self.source.tensors.values():
            held[tensor.dtype] += tensor.nbytes
        most = held.most_common(1)[0][0] if held else ""
        return str(DTYPES.get(most, most)).removeprefix("torch.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        text = read.read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {read.reason(error)}; restore the file") from error
    try:
        values = read.parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{path} is broken JSON: {error}; restore the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def load_config(directory: Path, strict: bool = True) -> ModelConfig:
    """The sizes of a model, a directory or a GGUF file; a directory's weights need not be there.

    Raises:
        ConfigError: config.json is missing, broken, or asks for something unsupported.
        CheckpointError: see `GgufSource`.
    """
    if directory.is_file():
        return GgufSource(directory).config(strict)[0]
    path = directory / CONFIG
    if not read.exists(path):
        raise ConfigError(f"{directory} has no {CONFIG}: it is not a checkpoint directory")
    return read_config(read_json(path), strict)


def load_generation(directory: Path) -> GenerationDefaults:
    """The sampler's defaults of a directory; all None if the files are absent.

    Raises:
        ConfigError: generation_config.json or dgemma.json is broken or asks for something
            unsupported.
    """
    path = directory / GENERATION_CONFIG
    found = read_generation_config(read_json(path)) if read.exists(path) else GenerationDefaults()
    return _with_own(directory, found)


def _with_own(directory: Path, found: GenerationDefaults) -> GenerationDefaults:
    """The defaults with what dgemma.json adds to them."""
    own = directory / OWN
    return read_own(read_json(own), found) if read.exists(own) else found


def open_checkpoint(directory: Path, strict: bool = True) -> Checkpoint:
    """Read the configs and the headers of all files of a checkpoint; no weights yet.

    Args:
        directory: or a GGUF file; see `find_model`.
        strict: see `read_config`.

    Raises:
        ConfigError: a JSON file is missing, broken, or asks for something unsupported.
        CheckpointError: a shard is missing, truncated or not as the index says.
    """
    if directory.is_file():
        gguf = GgufSource(directory)
        config, generation = gguf.config(strict)
        beside = gguf.path.parent
        generation = _with_own(beside, generation)
        return Checkpoint(directory=beside, config=config, generation=generation, source=gguf)
    config = load_config(directory, strict)
    generation = load_generation(directory)
    index = directory / INDEX
    stored = Safetensors(directory, read_json(index) if read.exists(index) else None)
    quantiser = directory / QUANT_CONFIG
    source = read_packed(
        stored, config.extra, read_json(quantiser) if read.exists(quantiser) else None
    )
    return Checkpoint(directory=directory, config=config, generation=generation, source=source)
