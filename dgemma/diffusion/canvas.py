"""The nouns of the sampler: what a canvas may hold, a canvas being denoised, a finished one.

Frozen values without behaviour beyond views of themselves. A `Canvas` is a full snapshot: with
the request's prefix it is all that is needed to go on, on any machine and in any batch.
Knows nothing about how a step is made, nor about networks, caches or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma.diffusion.schedule import Schedule
from dgemma.errors import ContextOverflow, InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.kernels.head_output import HeadLogprobs
from dgemma.params import SamplingParams, canvas_width
from dgemma.types import FinishReason, StopReason, TraceStep

FREE = Controls()
"""Nothing is asked of a canvas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasSpec:
    """The facts of a checkpoint that the sampler needs.

    Attributes:
        length: tokens of a canvas.
        vocab_size: ids are below it.
        context_length: most positions of prompt and answer together.
        end_ids: ids that end an answer.
        pad_id: fills a committed canvas after its first end id.
        suppress_ids: ids that are neither sampled nor drawn as noise (image and video
            placeholders). Empty is the behaviour of `transformers`.
        device: where the canvases live, which is where the network lives.
    """

    length: int
    vocab_size: int
    context_length: int
    end_ids: tuple[int, ...]
    pad_id: int = 0
    suppress_ids: tuple[int, ...] = ()
    device: torch.device = torch.device("cpu")

    def narrowed(self, params: SamplingParams) -> CanvasSpec:
        """The same with the canvas length that `params` ask for.

        Raises:
            InvalidRequest: a wider canvas than this one.
        """
        return replace(self, length=canvas_width(params, self.length))

    def check_room(self, prompt: Sequence[int], room: int) -> None:
        """Refuse a prompt that is empty or leaves fewer than `room` positions.

        Raises:
            InvalidRequest: it is empty.
            ContextOverflow: it is too long.
        """
        if not prompt:
            raise InvalidRequest("the prompt is empty; give at least one token")
        most = self.context_length - room
        if len(prompt) > most:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer of {room} in the "
                f"model's context of {self.context_length}; shorten it to at most {most}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """One canvas of one request between two denoising steps.

    Attributes:
        seed: of the request.
        index: which canvas of the request, from 0.
        attempt: which try of this canvas, from 0.
        step: denoising steps made so far.
        ids: int64 [C], what the network reads next.
        soft: [C, D] belief of the last step, None before the first (the signal is then zero).
        argmax: int64 [C] of the last step, None before the first. This is what gets committed.
        entropy: fp32 [C] nats of the last step.
        accepted: bool [C], the positions that kept their sample at the last step.
        mean_entropy: nats, of the last step; infinite before the first.
        repeats: how many steps just before the last one had the same argmax canvas.
        reason: why the canvas is finished, "" while it is not.
        controls: what holds on this canvas, for its C rows; `pinned` among it.
        begun: the step it began with.
        until: the step it ends before, whatever it is like; None: the schedule's.
        logprobs: of the last step, where `controls` ask for them.
        unchanged: int64 [C], how many steps just before the last one had the same argmax there;
            counted under `stable_prefix` alone.
        stable: how many positions from the first on can no longer change, under `stable_prefix`.
    """

    seed: int
    index: int
    step: int
    ids: Tensor
    soft: Tensor | None = None
    argmax: Tensor | None = None
    entropy: Tensor | None = None
    accepted: Tensor | None = None
    mean_entropy: float = math.inf
    repeats: int = 0
    reason: StopReason = ""
    controls: Controls = FREE
    begun: int = 0
    until: int | None = None
    logprobs: HeadLogprobs | None = None
    unchanged: Tensor | None = None
    stable: int = 0
    attempt: int = 0

    @property
    def failed(self) -> bool:
        """Whether the last step met numbers that are not finite; the canvas is then of no use."""
        return math.isnan(self.mean_entropy)

    @property
    def made(self) -> int:
        """Denoising steps that this very canvas has made."""
        return self.step - self.begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A finished canvas.

    Attributes:
        canvas_ids: all C ids; after the first end id only padding.
        token_ids: those before the first end id.
        ended: whether there is an end id.
    """

    canvas_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The answer of a reference loop to one prompt.

    Attributes:
        token_ids: the answer without end ids, cut at `max_tokens`.
        finish_reason: "stop" where an end id came within `max_tokens`, else "length".
        canvases: the committed canvases, whole (none if autoregressive).
        steps: denoising steps of each canvas (if autoregressive its passes, one number).
        trace: every denoising step; of canvases side by side the leading one's.
        discarded_steps: those of tries that were thrown away.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    canvases: tuple[tuple[int, ...], ...] = ()
    steps: tuple[int, ...] = ()
    trace: tuple[TraceStep, ...] = ()
    discarded_steps: int = 0


def states(after: Canvas) -> bytes:
    """One byte a position: 1 where the last step accepted its sample, 2 where it is pinned."""
    assert after.accepted is not None
    marks = after.accepted.to(torch.uint8)
    if after.controls.pinned is not None:
        marks = marks.masked_fill(after.controls.pinned >= 0, 2)
    return bytes(marks.tolist())


def trace_step(before: Canvas, after: Canvas, schedule: Schedule) -> TraceStep:
    """The step that led from `before` to `after`, as plain values."""
    assert after.argmax is not None and after.entropy is not None
    return TraceStep(
        canvas=before.index,
        attempt=before.attempt,
        step=before.step,
        temperature=schedule.temperature(before.step),
        ids=tuple(before.ids.tolist()),
        argmax=tuple(after.argmax.tolist()),
        accepted=states(after),
        entropy=tuple(after.entropy.tolist()),
        reason=after.reason,
    )
