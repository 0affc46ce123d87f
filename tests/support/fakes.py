"""Stand-ins for the expensive parts. Each says what it fakes and keeps what it was asked.

`ScriptedModel` is a network whose belief at every step is written down by the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.kernels.controls import Controls
from dgemma.kernels.head_output import HeadOutput

Belief = tuple[Sequence[int], Sequence[float]]
"""The argmax of each position, and its entropy in nats."""


def head_output(
    argmax: Sequence[int], entropy: Sequence[float], sample: Sequence[int] | None = None
) -> HeadOutput:
    """What the vocabulary operation would say; the sample is the argmax unless given."""
    return HeadOutput(
        argmax=torch.tensor(argmax),
        sample=torch.tensor(argmax if sample is None else sample),
        entropy=torch.tensor(entropy, dtype=torch.float32),
        soft=torch.tensor(argmax, dtype=torch.float32)[:, None].clone(),
    )


@dataclass
class Predicted:
    """A call of `predict`: the canvas the network read, and the belief it was given."""

    canvas: int
    ids: list[int]
    soft: list[float] | None


class ScriptedModel:
    """`encode`, `predict`, `read` and `greedy` of a network that believes what `script` says.

    Args:
        script: (canvas, step), both from 0, to the belief of that step.

    Attributes:
        encoded: the ids of each `encode`.
        predicted: the calls of `predict`.
        temperatures: of each `read`.
        controls: of each `read` and `greedy`.
    """

    def __init__(self, script: Callable[[int, int], Belief]) -> None:
        self.script = script
        self.encoded: list[list[int]] = []
        self.predicted: list[Predicted] = []
        self.temperatures: list[float] = []
        self.controls: list[Controls] = []
        self._step = 0

    def encode(self, ids: Tensor) -> Tensor:
        self.encoded.append(ids[0].tolist())
        self._step = 0
        return torch.zeros(1, ids.shape[1], 1)

    def predict(self, ids: Tensor, soft: Tensor | None) -> Tensor:
        belief = None if soft is None else soft[0, :, 0].tolist()
        self.predicted.append(Predicted(len(self.encoded) - 1, ids[0].tolist(), belief))
        return torch.zeros(1, ids.shape[1], 1)

    def read(
        self, hidden: Tensor, temperature: Tensor, uniforms: Tensor, controls: Controls
    ) -> HeadOutput:
        assert len(hidden) == len(temperature) == len(uniforms)
        argmax, entropy = self.script(len(self.encoded) - 1, self._step)
        self._step += 1
        assert len(set(temperature.tolist())) == 1
        self.temperatures.append(temperature[0].item())
        self.controls.append(controls)
        return head_output(argmax, entropy)

    def greedy(self, hidden: Tensor, controls: Controls) -> Tensor:
        """The first id of the script: one token an encode."""
        self.controls.append(controls)
        return torch.tensor(self.script(len(self.encoded) - 1, 0)[0][: len(hidden)])
