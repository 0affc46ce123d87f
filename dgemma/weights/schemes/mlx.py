"""The layouts of MLX. Source: the config's `quantization`; checked against MLX itself, see the log.

A module is packed if `X.scales` is there. Its words of 32 bit are read as bytes, the lowest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dgemma.errors import CheckpointError
from dgemma.quant.affine import Affine
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Format, Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import EXPONENTS, FLOATS, Stored, as_bytes, matrix_shape, need

MODES: dict[str, tuple[int, int]] = {"affine": (4, 64), "mxfp4": (4, 32), "mxfp8": (8, 32),
                                     "nvfp4": (4, 16)}  # fmt: skip
"""Bits and group of each mode, where the config has none."""
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    groups = {}
    for name in tensors:
        module, _, word = name.rpartition(".")
        if word == "scales":
            mode, bits, group = _rule(config, module)
            groups[f"{module}.weight"] = _group(tensors, module, mode, bits, group)
    return groups


def _rule(config: Mapping[str, Any], module: str) -> tuple[str, int, int]:
    """Mode, bits and group of a module: its own entry, or that of all."""
    own = config.get(module, config)
    if not isinstance(own, dict):
        raise CheckpointError(
            f"config.json says that {module} is not packed, but {module}.scales is there; restore "
            "config.json, or take the BF16 checkpoint"
        )
    mode = own.get("mode", "affine")
    usual = MODES.get(mode) if isinstance(mode, str) else None
    bits, group = own.get("bits"), own.get("group_size")
    rule = (mode, bits or (usual and usual[0]), group or (usual and usual[1]))
    known = usual is not None and all(type(number) is int for number in rule[1:])
    known = known and (
        rule[1:] == usual if mode != "affine" else rule[1] in BITS and rule[2] in GROUPS
    )
    if not known:
        raise CheckpointError(
            f"{module} has mode {str(mode)[:40]}, {str(bits)[:40]} bits, groups of "
            f"{str(group)[:40]}, which is not supported; these are: affine with {BITS} bits and "
            f"groups of {GROUPS}, {', '.join(list(MODES)[1:])}; or take the BF16 checkpoint"
        )
    return rule  # type: ignore[return-value]


def _group(tensors: Stored, module: str, mode: str, bits: int, group: int) -> Group:
    name, scales, biases = (f"{module}.{word}" for word in ("weight", "scales", "biases"))
    need(tensors, name, scales, ("U32",), [tensors[name].shape] if name in tensors else [])
    *lead, words = matrix_shape(tensors, name)
    columns = words * 32 // bits
    if columns % group or columns * bits != words * 32:
        raise CheckpointError(
            f"{name} has rows of {words} words, which are no groups of {group} numbers of {bits} "
            "bits; config.json belongs to other files: restore it"
        )
    counts = [(*lead, columns // group)]
    kinds = {"affine": FLOATS, "nvfp4": ("U8", "F8_E4M3")}.get(mode, EXPONENTS)
    need(tensors, scales, name, kinds, counts)
    stored = [name, scales]
    if mode == "affine":
        need(tensors, biases, name, FLOATS, counts)
        stored.append(biases)
    form: Format = Affine(bits, group)
    if mode != "affine":
        form = Float8(group) if bits == 8 else Float4(group)

    def build(read: Read) -> Packed:
        codes, scale = as_bytes(read(name)), read(scales).view(counts[0])
        parts = {"codes": codes, "scale": scale}
        if mode == "affine":
            parts["bias"] = read(biases).view(counts[0])
        else:
            kind = torch.float8_e4m3fn if mode == "nvfp4" else torch.float8_e8m0fnu
            parts["scale"] = scale.view(kind)
            parts["codes"] = codes.view(torch.float8_e4m3fn) if bits == 8 else codes
        return Packed(form, columns, parts)

    return Group(form, (*lead, columns), tuple(stored), build)
