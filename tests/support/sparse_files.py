"""Checkpoints in full size as sparse files: right headers and lengths, and no numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma.model.config import ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.weights.find import CONFIG
from dgemma.weights.safetensors import INDEX
from dgemma.weights.source import StoredTensor

SIZES = {"F32": 4, "BF16": 2, "U8": 1, "F8_E4M3": 1}
"""Bytes of a number."""
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""The word for the numbers of each tensor, and its shape."""

NVFP4: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
        "ignore": ["*mlp*", "*router*", "*self_attn*", "lm_head", "*vision_tower*"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
}  # fmt: skip
"""What config.json of NVIDIA's file adds."""


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Of a tensor."""
    return SIZES[kind] * math.prod(shape)


def plain(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """All tensors in BF16."""
    return {name: ("BF16", shape) for name, shape in shapes.items()}


def nvfp4(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The layout of NVIDIA's file: each expert's matrices packed, four tensors each."""
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        base, _, leaf = name.rpartition(".")
        if not base.endswith(".experts"):
            out[name] = "BF16", shape
            continue
        count, rows, columns = shape
        words = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
        for module in (f"{base}.{e}.{word}" for e in range(count) for word in words):
            out[f"{module}.weight"] = "U8", (rows // len(words), columns // 2)
            out[f"{module}.weight_scale"] = "F8_E4M3", (rows // len(words), columns // 16)
            out[f"{module}.weight_scale_2"] = out[f"{module}.input_scale"] = "F32", ()
    return out


def headers(tensors: Tensors) -> dict[str, StoredTensor]:
    """What a source knows of them before anything is read."""
    return {
        n: StoredTensor(kind, shape, nbytes(kind, shape)) for n, (kind, shape) in tensors.items()
    }


def sparse(path: Path, head: bytes, size: int) -> None:
    """A file of `size` bytes of which only the head is on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def has_sparse_files(directory: Path) -> bool:
    """Whether a file system keeps only what was written of a file."""
    sparse(directory / "probe", b"", 1 << 26)
    return (directory / "probe").stat().st_blocks * 512 <= 1 << 20


def write_sparse(
    directory: Path, config: ModelConfig, tensors: Tensors, shards: int,
    extra: Mapping[str, Any],
) -> int:  # fmt: skip
    """Write a checkpoint; returns the bytes of its tensors on paper."""
    names = list(tensors)
    weight_map, total = {}, 0
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, end = {}, 0
        ours = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        # The widest numbers first, as the library writes them: each begins at a multiple of itself.
        for name in sorted(ours, key=lambda name: -SIZES[tensors[name][0]]):
            kind, shape = tensors[name]
            start, end = end, end + nbytes(kind, shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        sparse(directory / file, struct.pack("<Q", len(text)) + text, 8 + len(text) + end)
        total += end
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / CONFIG).write_text(json.dumps(write_config(config) | dict(extra)))
    return total
