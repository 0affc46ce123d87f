"""Modules that compute with packed weights in the places of a network's plain ones.

`swap` puts them there before the weights are read: their weights are placeholders on the meta
device, which `put` replaces. The network does not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dgemma.kernels.experts import experts_grouped, experts_sparse
from dgemma.model.layers import Experts, Linear
from dgemma.quant.packed import Format, Packed


class PackedBuffers(nn.Module):
    """The parts of one `Packed` as buffers, so that they move with the network."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.format, self.columns = packed.format, packed.columns
        for name, part in packed.parts.items():
            self.register_buffer(name, part)

    @property
    def packed(self) -> Packed:
        """The value; no copy."""
        return Packed(self.format, self.columns, dict(self.named_buffers()))


class PackedLinear(nn.Module):
    """A linear layer that unpacks its weight for each product."""

    weight: PackedBuffers | nn.Parameter

    def __init__(self, plain: Linear, formats: Mapping[str, Format]) -> None:
        super().__init__()
        self.formats = formats
        self.weight = _placeholder(plain.out_features, plain.in_features)

    def forward(self, x: Tensor) -> Tensor:  # [N, in] -> [N, out]
        assert isinstance(self.weight, PackedBuffers)
        return self.weight.packed.linear(x)


class PackedExperts(nn.Module):
    """Experts whose matrices are unpacked one by one."""

    gate_up_proj: PackedBuffers | nn.Parameter
    down_proj: PackedBuffers | nn.Parameter

    def __init__(self, plain: Experts, formats: Mapping[str, Format]) -> None:
        super().__init__()
        self.formats = formats
        self.gate_up_proj = _placeholder(*plain.gate_up_proj.shape)
        self.down_proj = _placeholder(*plain.down_proj.shape)
        self.kernel = experts_sparse

    def choose(self, device: torch.device, dtype: torch.dtype, grad: bool) -> tuple[str, str]:
        """Choose the kernel, for good: its name and the reason."""
        names = ", ".join(dict.fromkeys(f.name for f in self.formats.values()))
        self.kernel = experts_sparse if dtype == torch.float32 else experts_grouped
        reason = f"{names}: no kernel for it yet, each expert is unpacked for its product; {device}"
        return "unpacked", reason

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # [N, D] -> [N, D]
        assert isinstance(self.gate_up_proj, PackedBuffers)
        assert isinstance(self.down_proj, PackedBuffers)
        gate_up = Unpacking(self.gate_up_proj.packed, x.dtype)
        down = Unpacking(self.down_proj.packed, x.dtype)
        return self.kernel(x, index, weight, gate_up, down)  # type: ignore[arg-type]


class Unpacking:
    """A packed stack in the place of a plain one: `stack[expert]` is unpacked when asked for."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        self.packed, self.dtype, self.shape = packed, dtype, packed.shape

    def __getitem__(self, expert: int) -> Tensor:
        """The numbers of one matrix, [R, K]."""
        return self.packed[expert].dequantise(self.dtype)


_PACKED = {Linear: PackedLinear, Experts: PackedExperts}


def swap(model: nn.Module, formats: Mapping[str, Format]) -> None:
    """Put packed modules in the places of plain ones.

    Weights of other modules are unpacked when they are read, and so are experts of which only one
    stack is packed.

    Args:
        model: on the meta device.
        formats: of each packed weight, by its name in `model.state_dict()`.
    """
    owners: dict[str, dict[str, Format]] = {}
    for name, form in formats.items():
        path, _, leaf = name.rpartition(".")
        owners.setdefault(path, {})[leaf] = form
    for path, theirs in owners.items():
        plain = model.get_submodule(path)
        make = _PACKED.get(type(plain))
        if make is not None and len(theirs) == len(list(plain.parameters(recurse=False))):
            model.set_submodule(path, make(plain, theirs))


def put(module: nn.Module, leaf: str, packed: Packed) -> None:
    """Fill a placeholder of a packed module."""
    delattr(module, leaf)
    setattr(module, leaf, PackedBuffers(packed))


def keeps_packed(module: nn.Module) -> bool:
    """Whether a module computes with packed weights."""
    return isinstance(module, PackedLinear | PackedExperts)


def _placeholder(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
