"""A language of a few ids whose next token a test writes down, and drafts of it that it scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.diffusion.draft_policy import FIRST_DRAFT, DraftPolicy
from dgemma.diffusion.exact import speculate
from dgemma.diffusion.schedule import Schedule
from dgemma.params import SamplingParams
from tests.support.heads import head_of

SURE = 20.0
"""A logit that leaves no doubt."""

NEVER = DraftPolicy(pause=1_000_000)
"""Token by token."""


class ToyModel:
    """The two modes of a network whose hidden states are its logits.

    Args:
        next_logits: the encode mode: the context so far to V logits.
        draft: the denoise mode: the context and the step of the draft, from 0, to V logits a
            position.
        vocab_size: V.

    Attributes:
        context: ids that are encoded.
        encoded: the ids of each call of `encode`; `drafts`: the steps of each draft.
    """

    def __init__(
        self,
        next_logits: Callable[[tuple[int, ...]], Sequence[float]],
        draft: Callable[[tuple[int, ...], int], Tensor],
        vocab_size: int,
    ) -> None:
        self.next_logits, self.draft = next_logits, draft
        self.head = head_of(torch.eye(vocab_size), "rows")
        self.context: list[int] = []
        self.encoded: list[list[int]] = []
        self.drafts: list[int] = []
        self.canvases: list[list[int]] = []

    def encode(self, ids: Tensor) -> Tensor:
        self.encoded.append(ids[0].tolist())
        rows = []
        for token in self.encoded[-1]:
            self.context.append(token)
            rows.append(self.next_logits(tuple(self.context)))
        return torch.tensor([rows])

    def truncate(self, count: int) -> None:
        assert count <= len(self.encoded[-1]), "more than the last pass brought"
        del self.context[len(self.context) - count :]

    def predict(self, ids: Tensor, soft: Tensor | None) -> Tensor:
        if soft is None:
            self.drafts.append(0)
        self.canvases.append(ids[0].tolist())
        self.drafts[-1] += 1
        return self.draft(tuple(self.context), self.drafts[-1] - 1)[None]

    def answer(
        self, prompt: Sequence[int], params: SamplingParams, spec: CanvasSpec,
        policy: DraftPolicy = FIRST_DRAFT,
    ) -> Generation:  # fmt: skip
        """By the reference loop, on an empty context."""
        self.context.clear()
        schedule = Schedule.of(SamplingParams())
        return speculate(
            prompt, params, spec, self.encode, self.truncate, self.predict, self.head, schedule,
            policy,
        )  # fmt: skip


def sure(ids: Sequence[int], vocab_size: int, logit: float = SURE) -> Tensor:
    """Logits [N, V] that leave no doubt about these ids."""
    return torch.nn.functional.one_hot(torch.tensor(ids), vocab_size).float() * logit
