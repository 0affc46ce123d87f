"""The layout "fp8" of transformers (finegrained). Source: its config and the headers of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import Block, Stored, beside, float8_group, is_scale


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`. A scale multiplies, also one that is called `weight_scale_inv`."""
    blocks = _blocks(config.get("weight_block_size"))
    groups = {}
    for name, info in tensors.items():
        if info.dtype == "F8_E4M3" and not is_scale(name):
            words = ("weight_scale_inv", "scale_inv", "weight_scale")
            scales = [beside(name, word) for word in words]
            groups[name] = float8_group(tensors, name, scales, blocks)
    return groups


def _blocks(size: object) -> list[Block]:
    if size is None:
        return [(0, 0), (1, 0)]
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return [(size[0], size[1])]
    raise CheckpointError(
        f"quantization_config: weight_block_size is {str(size)[:80]}; it must be two sizes, such "
        "as [128, 128]: restore config.json"
    )
