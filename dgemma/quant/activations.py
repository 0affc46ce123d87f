"""How large the inputs of each matrix are: mean squares of every column while a network runs.

An error in a column of a weight counts as much as the square of what it is multiplied with.
Knows modules; knows nothing about texts or files.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.kernels.linear import rows_linear
from dgemma.model.layers import Experts, Linear
from dgemma.quant.choice import Unpacking
from dgemma.quant.modules import PackedExperts, PackedLinear
from dgemma.quant.packed import Packed

PRIOR = 16.0
"""Rows that each expert is taken to have seen beside its own, with the squares of all experts: one
that is seldom chosen has nothing to go by."""
LEAST = 1e-3
"""Of a column's square, against the mean of all: a text may never touch a column that others do."""


class Activations:
    """Watches a network from its beginning until `close`."""

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_pre_hook(self._watch(path))
            for path, module in model.named_modules()
            if isinstance(module, Linear | PackedLinear | Experts | PackedExperts)
        ]

    def close(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()

    def importance(self, name: str) -> Tensor | None:
        """Of the columns of a matrix or stack, fp32 [K] or [E, K] with a mean of one.

        Args:
            name: as in `model.state_dict()`. None: it was never used.
        """
        if name not in self._sums:
            return None
        sums, counts = self._sums[name], self._counts[name]
        if sums.dim() == 2:
            mean = sums.sum(0) / counts.sum().clamp(min=1e-9)
            sums, counts = sums + PRIOR * mean, counts + PRIOR
        # The root: with the squares themselves nano's answers change more, see docs/log.md.
        found = (sums / counts.unsqueeze(-1)).sqrt()
        whole = found.mean(-1, keepdim=True).clamp(min=1e-30)
        return (found / whole).clamp(min=LEAST)

    def _watch(self, path: str) -> Any:
        def linear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            self._add(f"{path}.weight", None, x, torch.ones(len(x), device=x.device))

        def experts(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._experts(path, module, *inputs)

        return experts if path.endswith("experts") else linear

    def _experts(
        self, path: str, module: nn.Module, x: Tensor, index: Tensor, weight: Tensor
    ) -> None:
        gate_up, down = (_matrices(getattr(module, n), x) for n in ("gate_up_proj", "down_proj"))
        for expert in sorted(set(index.flatten().tolist())):
            rows, slots = torch.nonzero(index == expert, as_tuple=True)
            counts = weight[rows, slots].square()  # the error of an expert is weighed as it is
            gate, up = rows_linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
            inner = F.gelu(gate, approximate="tanh") * up
            of = expert, down.shape[0]
            self._add(f"{path}.gate_up_proj", of, x[rows], counts)
            self._add(f"{path}.down_proj", of, inner, counts)

    def _add(self, name: str, of: tuple[int, int] | None, x: Tensor, counts: Tensor) -> None:
        """Add rows x [N, K], each as often as it counts [N]; `of`: an expert, and how many are."""
        squares = (x.float().square() * counts.float()[:, None]).sum(0).cpu()
        number = counts.float().sum().cpu()
        if name not in self._sums:
            lead = () if of is None else (of[1],)
            self._sums[name] = torch.zeros(*lead, len(squares))
            self._counts[name] = torch.zeros(lead)
        expert = () if of is None else of[0]
        self._sums[name][expert] += squares
        self._counts[name][expert] += number


def _matrices(stack: Any, x: Tensor) -> Any:
    return Unpacking(stack, x.dtype) if isinstance(stack, Packed) else stack
