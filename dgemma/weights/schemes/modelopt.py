"""The layouts of NVIDIA's modelopt: FP8, NVFP4, and files that mix them.

Source: `quantization_config`, `hf_quant_config.json`, and the headers of published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma.weights.packed import Group, Read
from dgemma.weights.schemes.parts import (
    EXPONENTS,
    Stored,
    beside,
    float4_group,
    float8_group,
    is_scale,
)


def read_scheme(config: Mapping[str, Any], tensors: Stored, read: Read) -> dict[str, Group]:
    """See `Scheme`. Each weight's own dtype says which layout it has."""
    groups = {}
    for name, info in tensors.items():
        scale_name = beside(name, "weight_scale")
        if is_scale(name):
            continue
        if info.dtype == "F8_E4M3":
            groups[name] = float8_group(tensors, name, [scale_name], [(0, 0), (1, 0)])
        elif info.dtype == "U8" and name.endswith(("weight", "_proj")):
            scale, outer = tensors.get(scale_name), beside(name, "weight_scale_2")
            if outer not in tensors and scale is not None and scale.dtype in EXPONENTS:
                groups[name] = float4_group(tensors, name, name, 32, None, inverse=False)
            else:
                groups[name] = float4_group(tensors, name, name, 16, outer, inverse=False)
    return groups
