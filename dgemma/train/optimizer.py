"""Muon for matrices, Adam for the rest.

Muon replaces the momentum of a matrix by its nearest orthogonal matrix (five Newton-Schulz steps).
`torch.optim.Muon` takes two-dimensional parameters alone; the experts here are stacks of matrices,
so the steps run on batches, and all matrices of one shape go through them together.
Knows nothing about models or schedules. Source: K. Jordan et al., "Muon", 2024 (coefficients).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: [B, m, n] -> [B, m, n], singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.transpose(1, 2) if tall else x
    return out


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; the step has RMS `0.2 * lr` whatever the shape.

    Args:
        params: matrices [m, n] or stacks [B, m, n].
        lr: as for Adam, thanks to the RMS matching.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                m, n = p.shape[-2:]
                by_shape.setdefault((m, n), []).append((p, update.reshape(-1, m, n)))
            for (m, n), members in by_shape.items():
                flat = orthogonalise(torch.cat([u for _, u in members]))
                scale = 0.2 * max(m, n) ** 0.5
                start = 0
                for p, update in members:
                    count = update.shape[0]
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(flat[start : start + count].view_as(p), alpha=group["lr"] * scale)
                    start += count
