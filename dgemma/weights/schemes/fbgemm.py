"""The layout "fbgemm_fp8" of transformers: a scale a row, and stacks of experts written turned.

Source: its config and module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import (
    FLOATS,
    Stored,
    beside,
    first_of,
    float8_group,
    is_scale,
    matrix_shape,
    need,
)


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`."""
    groups = {}
    for name, info in tensors.items():
        if info.dtype == "F8_E4M3" and not is_scale(name):
            make = _turned if len(info.shape) == 3 else _plain
            groups[name] = make(tensors, name)
    return groups


def _plain(tensors: Stored, name: str) -> Group:
    return float8_group(tensors, name, [beside(name, "weight_scale")], [(1, 0)])


def _turned(tensors: Stored, name: str) -> Group:
    """A stack [E, K, R] with scales [E, 1, R] or [E, R, 1]."""
    experts, columns, rows = matrix_shape(tensors, name)
    scale = first_of(tensors, [f"{name}_scale", beside(name, "weight_scale")])
    need(tensors, scale, name, FLOATS, [(experts, rows)])
    form = Float8()

    def build(read: Read) -> Packed:
        codes = read(name).transpose(1, 2).contiguous()
        return Packed(form, columns, {"codes": codes, "scale": read(scale).view(experts, rows, 1)})

    return Group(form, (experts, rows, columns), (name, scale), build)
