"""One live request with its tensors, and what a forward's result does to it.

Knows the sampler and the cache. Knows nothing about other rows, batching or threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dgemma.diffusion.canvas import Canvas, CanvasSpec, trace_step
from dgemma.diffusion.sampler import finish, start
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.thought import budget_exceeded
from dgemma.engine.request import Progress
from dgemma.errors import DGemmaError
from dgemma.model.cache import RowCache
from dgemma.model.transformer import Part
from dgemma.types import ENTROPY_PER_NAT, Event

Enough = Callable[[tuple[int, ...]], bool]
"""Shown the ids of every commit in turn; True ends the request with "stop"."""


@dataclass(slots=True, eq=False)
class Row:
    """A live request: its progress, its cache, the canvas being denoised if any, its events."""

    progress: Progress
    cache: RowCache
    spec: CanvasSpec
    schedule: Schedule
    enough: Enough | None = None
    canvas: Canvas | None = None
    events: deque[Event] = field(default_factory=deque)

    def part(self, chunk: int) -> Part:
        """What the row brings to the next forward: a canvas, or at most `chunk` pending ids."""
        if self.canvas is not None:
            return self.cache, self.canvas.ids, True, self.canvas.soft
        ids = torch.tensor(self.progress.take(chunk), device=self.spec.device)
        return self.cache, ids, False, None

    def begin(self) -> None:
        """A budget of no thought at all closes the prompt's own thought before the first canvas."""
        self._go_on([])

    def begin_canvas(self) -> None:
        """Start the next canvas; nothing is pending."""
        self.canvas = start(self.progress.seed, self.progress.canvases, self.spec)

    def stepped(self, after: Canvas) -> None:
        """Take in one denoising step; a finished canvas is committed."""
        before, progress = self.canvas, self.progress
        assert before is not None
        if after.failed:
            progress.finish(
                "error",
                f"canvas {before.index}, step {before.step}: the network gave numbers that are "
                "not finite; try another dtype, or check the weights with `dgemma check`",
            )
            return
        progress.steps += 1
        self.canvas = after
        if progress.request.trace:
            progress.trace.append(trace_step(before, after, self.schedule))
        if progress.request.frames:
            self.events.append(self._frame(before, after))
        if after.reason:
            self._commit(after)

    def _frame(self, before: Canvas, after: Canvas) -> Event:
        assert after.argmax is not None and after.accepted is not None and after.entropy is not None
        entropy = (after.entropy * ENTROPY_PER_NAT).round().clamp(max=255)
        return Event(
            type="frame",
            index=self.progress.request.index,
            canvas=before.index,
            step=before.step,
            ids=tuple(after.argmax.tolist()),
            accepted=bytes(after.accepted.tolist()),
            entropy=bytes(entropy.to(torch.uint8).tolist()),
        )

    def _commit(self, canvas: Canvas) -> None:
        commit = finish(canvas, self.spec)
        self.canvas = None
        self._tell(self.progress.commit(list(commit.token_ids), commit.ended, canvas.step))
        self._go_on(list(commit.token_ids))

    def _tell(self, event: Event) -> None:
        """Queue a commit, and ask whether it was enough."""
        self.events.append(event)
        try:
            if self.enough is not None and self.enough(event.ids):
                self.progress.finish("stop")
        except DGemmaError as error:  # this request's alone
            self.progress.finish("error", str(error))

    def chose(self, token: int) -> None:
        """Take in one token of the autoregressive twin; -1 where it was not finite."""
        progress = self.progress
        progress.steps += 1
        if token < 0:
            progress.finish("error", "the network gave numbers that are not finite")
        else:
            ended = token in self.spec.end_ids
            ids = [] if ended else [token]
            self._tell(progress.commit(ids, ended, 1))
            self._go_on(ids)

    def _go_on(self, ids: list[int]) -> None:
        """Close a thought that has outgrown its budget, and queue what must be encoded next."""
        progress = self.progress
        if progress.output is not None:
            return
        thought = progress.request.thought
        budget = progress.request.params.thinking_budget
        if thought is not None and budget_exceeded(progress.committed, thought, budget):
            self._tell(progress.close_thought(thought.close_id))
            ids = [*ids, thought.close_id]
        progress.go_on(ids)
