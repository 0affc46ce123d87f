"""The layouts of compressed-tensors. Source: its `quantization_config` and its headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dgemma.errors import CheckpointError
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.compressed_ints import Columns, int8_group, packed_group
from dgemma.weights.schemes.matching import matches
from dgemma.weights.schemes.parts import (
    Block,
    Stored,
    beside,
    float4_group,
    float8_group,
    is_scale,
)


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    groups, columns = {}, Columns(tensors, read)
    for name, info in tensors.items():
        if info.dtype == "F8_E4M3" and not is_scale(name):
            scales = [beside(name, "weight_scale"), f"{name}_scale"]
            groups[name] = float8_group(tensors, name, scales, _blocks(config, name))
        elif info.dtype == "U8" and name.endswith(".weight_packed"):
            plain = name.removesuffix("_packed")
            groups[plain] = _float4(tensors, plain, name)
        elif info.dtype == "I32" and name.endswith(".weight_packed"):
            plain = name.removesuffix("_packed")
            groups[plain] = packed_group(tensors, plain, _rules(config, plain), columns)
        elif info.dtype == "I8" and not is_scale(name):
            groups[name] = int8_group(tensors, name, _blocks(config, name))
    return groups


def _float4(tensors: Stored, plain: str, codes: str) -> Group:
    """NVFP4, or MXFP4, whose scales are exponents and which has no other."""
    scale = tensors.get(beside(plain, "weight_scale"))
    outer = beside(plain, "weight_global_scale")
    if outer not in tensors and scale is not None and scale.dtype in ("U8", "F8_E8M0"):
        return float4_group(tensors, plain, codes, 32, None, inverse=False)
    return float4_group(tensors, plain, codes, 16, outer, inverse=True)


def _blocks(config: Mapping[str, Any], name: str) -> list[Block]:
    """What may share a scale in a module."""
    found = [block for weights in _rules(config, name) for block in _block(weights)]
    return found or [(1, 0), (0, 0)]


def _rules(config: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The rules for a module: those of the config's groups whose targets name it.

    If none does, any group of the config: the files decide.
    """
    module = name.removesuffix(".weight")
    groups = list(_groups(config))
    named = [weights for targets, weights in groups if any(matches(t, module) for t in targets)]
    return named or [weights for _, weights in groups]


def _groups(config: Mapping[str, Any]) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Targets and rule of each group, the most particular first: "Linear" is all of them."""
    groups = config.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            targets = group.get("targets")
            listed = targets if isinstance(targets, list) else []
            found.append(([t for t in listed if isinstance(t, str)], weights))
    return iter(sorted(found, key=lambda pair: "Linear" in pair[0]))


def _block(weights: Mapping[str, Any]) -> list[Block]:
    strategy = weights.get("strategy")
    if strategy == "block":
        size = weights.get("block_structure")
        if isinstance(size, list) and len(size) == 2 and all(_positive(n) for n in size):
            return [(size[0], size[1])]
        raise CheckpointError(
            f"quantization_config: block_structure is {str(size)[:80]}; it must be two sizes, such "
            "as [128, 128]: restore config.json"
        )
    size = weights.get("group_size")
    if strategy == "group" and isinstance(size, int) and _positive(size):
        return [(1, size)]
    return {"channel": [(1, 0)], "tensor": [(0, 0)]}.get(str(strategy), [])


def _positive(value: object) -> bool:
    return type(value) is int and value > 0
