"""When: the temperature of a step, which positions it accepts, and when a canvas is done.

Pure functions of numbers. Knows nothing about token ids, noise, networks or requests.
Source: `transformers` 5.17 `generation_diffusion_gemma.py`; the entropy bound is that of
https://arxiv.org/abs/2505.24857.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgemma.device import wide
from dgemma.params import DEFAULT_TRIES, RELEASED, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The sampler's numbers, none of them missing; see `SamplingParams` for their meaning.

    Attributes:
        scale: factor of all temperatures.
        greedy: whether a step proposes the likeliest ids instead of drawn ones.
        stable_prefix: whether the settled beginning of a canvas is pinned; see `stable.py`.
        restart_after, tries, race: when a canvas is begun anew; 0: never; see `tries.py`.
    """

    max_steps: int
    entropy_bound: float
    t_min: float
    t_max: float
    confidence_threshold: float
    stability_threshold: int
    ignore_tail: bool = False
    scale: float = 1.0
    greedy: bool = False
    stable_prefix: bool = False
    restart_after: int = 0
    tries: int = DEFAULT_TRIES
    race: int = 1

    @classmethod
    def of(cls, params: SamplingParams) -> Schedule:
        """The schedule of `params`; a field that is None takes the released value.

        Raises:
            InvalidRequest: the fields do not fit together (`t_min` above `t_max`).
        """
        full = params.merged(RELEASED)
        assert full.max_steps is not None and full.stability_threshold is not None
        assert full.entropy_bound is not None and full.confidence_threshold is not None
        assert full.t_min is not None and full.t_max is not None
        assert full.restart_after != "auto", "the caller puts the checkpoint's number in its place"
        return cls(
            max_steps=full.max_steps,
            entropy_bound=full.entropy_bound,
            t_min=full.t_min,
            t_max=full.t_max,
            confidence_threshold=full.confidence_threshold,
            stability_threshold=full.stability_threshold,
            ignore_tail=bool(full.ignore_tail),
            scale=full.temperature or 1.0,
            greedy=full.temperature == 0,
            stable_prefix=bool(full.stable_prefix),
            restart_after=full.restart_after or 0,
            tries=full.most_tries,
            race=full.race or 1,
        )

    def temperature(self, step: int) -> float:
        """Of step `step`, counted from 0: `t_max` first, just above `t_min` last.

        A lower `max_steps` compresses the whole schedule; it does not cut its end off.
        Steps past the schedule keep its last temperature. The arithmetic is fp32, like the
        oracle's.
        """
        left = np.float32(max(1, self.max_steps - step)) / np.float32(self.max_steps)
        own = float(np.float32(self.t_min) + np.float32(self.t_max - self.t_min) * left)
        return own if self.scale == 1.0 else own * self.scale

    def converged(self, repeats: int, mean_entropy: float) -> bool:
        """Whether a canvas is stable and confident.

        Args:
            repeats: how many steps just before this one had the same argmax canvas as this one.
                A threshold of k is met by k + 1 equal canvases in a row, so never at step 0.
            mean_entropy: nats, over all positions; NaN is not confident.
        """
        return repeats >= self.stability_threshold and mean_entropy < self.confidence_threshold


def accept(entropy: Tensor, entropy_bound: Tensor) -> Tensor:
    """The most certain positions, as many as the bound allows.

    Positions are taken in ascending order of entropy (equals: the earlier position first) as
    long as the entropy of those taken before stays within the bound; so at least one.

    Args:
        entropy: [B, C] nats; NaN is never accepted.
        entropy_bound: [B] nats.

    Returns:
        bool [B, C].
    """
    # fp64, so that no way of splitting the sum over threads can change a decision.
    ordered, order = wide(entropy).sort(dim=-1, stable=True)
    before = ordered.cumsum(-1) - ordered
    taken = before <= wide(entropy_bound)[:, None]
    return torch.zeros_like(taken).scatter(-1, order, taken)
