"""The layouts of compressed-tensors. Source: its `quantization_config` and its headers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Packed
from dgemma.weights.packed import Group, Read
from dgemma.weights.source import StoredTensor


def read_scheme(
    config: Mapping[str, object], tensors: Mapping[str, StoredTensor]
) -> dict[str, Group]:
    """See `Scheme`."""
    groups = {}
    for name, info in tensors.items():
        if info.dtype == "F8_E4M3" and name.endswith(".weight"):
            groups[name] = _float8(name, info, tensors)
    return groups


def _float8(name: str, info: StoredTensor, tensors: Mapping[str, StoredTensor]) -> Group:
    scale_name = f"{name}_scale"
    if scale_name not in tensors:
        raise CheckpointError(f"{name} is packed, but {scale_name} is not there; restore the file")
    rows, columns = info.shape

    def build(read: Read) -> Packed:
        scale: Tensor = read(scale_name).to(torch.float32).view(-1, 1).expand(rows, 1)
        return Packed(Float8(), columns, {"codes": read(name), "scale": scale})

    return Group(Float8(), info.shape, (name, scale_name), build)
