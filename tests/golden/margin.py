"""How far a frozen answer is from becoming another one; only the writing command asks.

Another CPU rounds otherwise, and the closest of a few thousand decisions may then flip. So every
decision is tried at once: Gaussian noise moves all logits by EPS rms, and each layer's output by a
little (a router's choice is a decision too), in eight seeded runs. The margin is the largest EPS of
the ladder at which all runs give the same answer. Where the answer can report its tokens with the
runner-up, the smallest gap between the two at a committed token bounds it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dgemma import LLM
from tests.golden.replay import IMPOSSIBLE, NUMBERS, Case, run

LADDER = (1e-3, 3e-3, 1e-2, 3e-2)
LEAST = LADDER[0]
RUNS = 8
INSIDE = 1e-5
"""Noise within the network, relative to what it is added to: above any rounding in fp32."""


def margin(answer: Case, again: Callable[[float, int], Case]) -> float:
    """The largest step of the ladder at which every perturbed run gives this answer, or 0.

    Args:
        again: the answer under noise of a size and a seed.
    """
    for size in reversed(LADDER):  # most cases are as safe as can be, and then it is soon done
        if all(decisions(again(size, seed)) == decisions(answer) for seed in range(RUNS)):
            return size
    return 0.0


def decisions(answer: Mapping[str, Any]) -> Case:
    """What of an answer was decided; the rest are measured numbers."""
    return {key: value for key, value in answer.items() if key not in NUMBERS}


def measure(llm: LLM, request: Mapping[str, Any], answer: Case) -> float:
    """The margin of an answer.

    Args:
        llm: one for this alone: what noise leaves in its memory of prompts must not be used again.
    """

    def again(size: float, seed: int) -> Case:
        with shaken(llm, size, seed):
            return run(llm, request)

    held = margin(answer, again)
    return min(held, gap(llm, request)) if held else held


@contextmanager
def shaken(llm: LLM, size: float, seed: int) -> Iterator[None]:
    """Within the block all logits move by `size` rms, before the cap."""
    network: Any = llm.model  # the names of its parts stand here alone
    table, last, layers = network.embed.weight, network.norm, network.layers
    scale = size / float(table.square().sum(-1).mean().sqrt())
    generator = torch.Generator().manual_seed(seed)

    def final(_module: Any, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out + scale * torch.randn(out.shape, generator=generator)

    def inner(_module: Any, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out * (1 + INSIDE * torch.randn(out.shape, generator=generator))

    hooks = [last.register_forward_hook(final)]
    hooks += [layer.register_forward_hook(inner) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gap(llm: LLM, request: Mapping[str, Any]) -> float:
    """The smallest lead of a committed token over the next likeliest, in nats."""
    plain = request.get("mode", "diffusion") == "diffusion"
    if not plain or request.get("call") in ("fill", "edit"):
        return LADDER[-1]
    asked = {**request, "params": {**request.get("params", {}), "logprobs": 2}}
    found = run(llm, asked)
    leads = [LADDER[-1]]
    for own, top in zip(found.get("logprobs", []), found.get("top", []), strict=True):
        # A token that was pinned or put in leads nobody.
        if len(top) > 1 and own == top[0] and top[1] > IMPOSSIBLE:
            leads.append(round(top[0] - top[1], 4))
    return min(leads)
