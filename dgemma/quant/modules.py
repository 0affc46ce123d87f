"""Modules that compute with packed weights in the places of a network's plain ones.

`swap` puts them there before the weights are read: their weights are placeholders on the meta
device, which `put` replaces. The network does not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dgemma.model.layers import Experts, Linear
from dgemma.quant.choice import EXACT, UNPACKED, choose_packed
from dgemma.quant.packed import Format, Packed


class PackedModule(nn.Module):
    """What packed modules have in common: placeholders, then what the kernel makes of the weights.

    The weights are no parameters and no buffers: they are not saved and do not move.
    """

    part: str

    def __init__(self, plain: nn.Module, formats: Mapping[str, Format]) -> None:
        super().__init__()
        self.formats, self.kernel = formats, EXACT
        self.shapes: dict[str, torch.Size] = {}
        for name, value in plain.named_parameters(recurse=False):
            self.shapes[name] = value.shape
            empty = torch.empty(value.shape, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def choose(
        self, device: torch.device, dtype: torch.dtype, grad: bool, room: float
    ) -> tuple[str, str]:
        """Choose the kernel, for good, before the weights are there: its name and the reason."""
        columns = [value.shape[-1] for value in self.parameters()]
        self.kernel, reason = choose_packed(
            self.part, self.formats.values(), columns, device, dtype, room
        )
        return self.kernel.name, reason

    def stay(self) -> None:
        """Compute with the packed numbers themselves, which may be views of a file."""
        if self.kernel.nbytes is not None:
            self.kernel = UNPACKED

    def nbytes(self, packed: Packed) -> int:
        """What the kernel makes of some of the weights takes; 0: they stay as they are."""
        return 0 if self.kernel.nbytes is None else self.kernel.nbytes(packed)


class PackedLinear(PackedModule):
    """A linear layer."""

    part = "linear"

    def forward(self, x: Tensor) -> Tensor:  # [N, in] -> [N, out]
        return self.kernel.linear(x, self.weight)


class PackedExperts(PackedModule):
    """Experts, both stacks packed."""

    part = "experts"

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # [N, D] -> [N, D]
        return self.kernel.experts(x, index, weight, self.gate_up_proj, self.down_proj)


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
    """Fill a placeholder of a packed module with what its kernel makes of the weights."""
    assert isinstance(module, PackedModule)
    delattr(module, leaf)
    setattr(module, leaf, module.kernel.prepare(packed))


def keeps_packed(module: nn.Module) -> bool:
    """Whether a module computes with packed weights."""
    return isinstance(module, PackedModule)


def packed_weights(module: nn.Module) -> dict[str, Packed]:
    """The weights of a packed module that its kernel reads as the file packs them."""
    if not isinstance(module, PackedModule):
        return {}
    kept = {leaf: getattr(module, leaf) for leaf in module.formats}
    return {leaf: one for leaf, one in kept.items() if isinstance(one, Packed)}


def kept_bytes(module: nn.Module) -> int:
    """What a filled packed module keeps in memory."""
    assert isinstance(module, PackedModule)
    total = 0
    for leaf in module.formats:
        kept = getattr(module, leaf)
        total += sum(one.nbytes for one in (kept if isinstance(kept, list) else [kept]))
    return total
