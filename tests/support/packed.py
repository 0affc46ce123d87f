"""Modules that hold 8-bit numbers in place of a network's own, and the files of such a network.

They are an example of any number format, and as plain as can be: every product unpacks its numbers.
A network with them computes what a plain one computes from the unpacked numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dgemma.kernels.experts import EXPERTS, choose_experts
from dgemma.kernels.linear import rows_linear
from dgemma.model.layers import Experts
from dgemma.weights.names import layouts


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and a scale a row: [..., K] -> int8 [..., K], fp32 [..., 1]."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (weight / scale).round().to(torch.int8), scale


class Packed(nn.Module):
    """Codes and scales of one matrix, or of a stack of them."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("weight_packed", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(*shape[:-1], 1))

    def numbers(self, part: slice | Tensor = slice(None)) -> Tensor:
        """The numbers of some rows."""
        return self.weight_packed[part] * self.weight_scale[part]


class PackedLinear(Packed):
    def forward(self, x: Tensor) -> Tensor:
        return rows_linear(x, self.numbers())


class PackedExperts(nn.Module):
    part = "experts"

    def __init__(self, plain: Experts) -> None:
        super().__init__()
        self.gate_up_proj = Packed(*plain.gate_up_proj.shape)
        self.down_proj = Packed(*plain.down_proj.shape)

    def choose(self, device: torch.device, dtype: torch.dtype, grad: bool) -> tuple[str, str]:
        count, _, inner = self.down_proj.weight_packed.shape
        name, reason = choose_experts(count, inner, dtype, device, grad)
        self.kernel = EXPERTS[name]
        return name, f"{reason}; unpacked"

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return self.kernel(x, index, weight, self.gate_up_proj.numbers(), self.down_proj.numbers())


class PackedEmbedding(Packed):
    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.size, self.width = size, width

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_scale.dtype

    @property
    def device(self) -> torch.device:
        return self.weight_scale.device

    def scale(self) -> Tensor:
        return torch.tensor(self.width**0.5, dtype=self.dtype, device=self.device)

    def rows(self, ids: Tensor) -> Tensor:
        return self.numbers(ids)

    def tile(self, low: int, high: int) -> Tensor:
        return self.numbers(slice(low, high))


RULES: Mapping[str, Callable[..., nn.Module]] = {
    r"embed": lambda plain: PackedEmbedding(plain.size, plain.width),
    r"layers\.\d+\.experts": PackedExperts,
    r".*\.(q|k|v|o|gate|up|down)_proj": (
        lambda plain: PackedLinear(plain.out_features, plain.in_features)
    ),
}
"""The path of a module, and the module that takes its place."""


def swap(model: nn.Module, rules: Mapping[str, Callable[..., nn.Module]] = RULES) -> list[str]:
    """Put packed modules in the places that the rules name; their paths."""
    done = []
    for path, plain in list(model.named_modules()):
        make = next((rules[rule] for rule in rules if re.fullmatch(rule, path)), None)
        if make is not None:
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, make(plain))
            done.append(path)
    return done


def packed_state(
    plain: Mapping[str, Tensor], swapped: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a network with packed modules, and that of a plain one with the same numbers."""
    packed, unpacked = {}, {}
    for name, value in plain.items():
        module = name.removesuffix(".weight")
        if value.dim() > 1 and any(module == p or module.startswith(f"{p}.") for p in swapped):
            codes, scale = pack(value)
            packed |= {f"{module}.weight_packed": codes, f"{module}.weight_scale": scale}
            unpacked[name] = codes * scale
        else:
            packed[name] = unpacked[name] = value
    return packed, unpacked


def in_file(state: Mapping[str, Tensor], way: int = 0) -> dict[str, Tensor]:
    """The tensors of a network as files have them; `way` is an index of `layouts` for stacks."""
    out = {}
    for name, value in state.items():
        ways = layouts(name, value.shape)
        out |= {n: value[index] for n, index in ways[way if len(ways) > 1 else 0].items()}
    return out
