"""One live request with its tensors, and what a pass does to it.

Knows the sampler and the request's own pages. Knows nothing about other rows, order or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, states, trace_step
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.control import EMPTY_PREFIX, begin, controls_for
from dgemma.diffusion.sampler import finish
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.scores import token_scores
from dgemma.diffusion.thought import budget_exceeded
from dgemma.engine.events import EventQueue
from dgemma.engine.job import Job, Scheduled
from dgemma.engine.request import Progress
from dgemma.errors import DGemmaError
from dgemma.kernels.vocabulary import Vocabulary
from dgemma.model.cache import PagedMemory
from dgemma.model.transformer import Part
from dgemma.types import ENTROPY_PER_NAT, CanvasControl, Event, TokenScore

ShouldStop = Callable[[tuple[int, ...]], bool]
"""Shown the ids of every commit in turn; True ends the request with "stop"."""


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a pass found for one row.

    Attributes:
        canvas: after a denoising step, else None.
        hidden: [C, D] of that step.
        token: what the twin chooses next; None: nothing to choose.
        finite: whether what was encoded is.
        scores: of the tokens behind those that were encoded, where the request is for them.
    """

    canvas: Canvas | None = None
    hidden: Tensor | None = None
    token: int | None = None
    finite: bool = True
    scores: tuple[float, ...] = ()


@dataclass(slots=True, eq=False)
class Row:
    """A live request: its place in the schedule, the canvas being denoised if any, its events.

    Attributes:
        vocabulary: for what is settled position by position.
        constrained: keeps the answer in its language.
        tries: how often in a row memory did not suffice for it alone.
    """

    job: Job
    spec: CanvasSpec
    schedule: Schedule
    vocabulary: Vocabulary
    should_stop: ShouldStop | None = None
    constrained: ConstrainedAnswer | None = None
    canvas: Canvas | None = None
    events: EventQueue = field(default_factory=EventQueue)
    tries: int = 0

    @property
    def progress(self) -> Progress:
        """Where the request stands."""
        return self.job.progress

    def parts(self, memory: PagedMemory, scheduled: Scheduled) -> list[Part]:
        """What the row brings to a pass: ids to encode, its canvas, or both in this order.

        A canvas that is there already when ids are encoded was begun before the row was set back.
        """
        progress, table = self.progress, self.job.table
        assert table is not None
        done, out = progress.encoded, list[Part]()
        if scheduled.count:
            cache = memory.row(done, table.full, table.sliding, progress.borders)
            ids = progress.context[done : done + scheduled.count]
            out.append((cache, torch.tensor(ids, device=self.spec.device), False, None))
        if scheduled.denoise:
            if self.canvas is None:
                self.canvas = self.first()
            cache = memory.row(done + scheduled.count, table.full, table.sliding)
            out.append((cache, self.canvas.ids, True, self.canvas.soft))
        return out

    @property
    def control(self) -> CanvasControl | None:
        """What the caller fixed on the canvas that is next or runs."""
        return None if self.progress.canvases else self.progress.request.canvas

    def first(self) -> Canvas:
        """The next canvas before its first step.

        Raises:
            InvalidRequest: its controls contradict each other.
        """
        progress, control = self.progress, self.control
        frame = (
            self.constrained.prefix(self.spec.length, control) if self.constrained else EMPTY_PREFIX
        )
        controls = controls_for(
            progress.request.params, self.spec, control, len(progress.committed), frame
        )
        return begin(
            progress.seed, progress.canvases, self.spec, self.schedule, controls, control
        )  # fmt: skip

    def begin(self) -> None:
        """A budget of no thought at all closes the prompt's own thought before the first canvas."""
        self._go_on([])

    def status(self, state: Literal["queued", "encoding"]) -> None:
        """Report where a request stands that has made no step yet, where that is wanted."""
        progress = self.progress
        if progress.request.status and not progress.steps:
            self.events.put(Event(
                type="status", index=progress.request.index, step=progress.encoded, state=state
            ))  # fmt: skip

    def encoded(self, result: StepResult, count: int) -> None:
        """Take in what was encoded, and the twin's next token where it was the last."""
        progress = self.progress
        if progress.request.mode == "score":
            first = progress.request.score_from
            at = max(0, progress.encoded - count + 1 - first)
            ids = progress.context[first + at :]
            scores = zip(ids, result.scores, strict=False)
            progress.scores[at:] = [TokenScore(token_id=i, logprob=v) for i, v in scores]
        if progress.encoded == len(progress.context):
            progress.encoded_all()
            if progress.request.mode == "score":
                progress.finish("stop")
        if result.token is not None:
            self._chose(result.token)

    def stepped(self, after: Canvas, hidden: Tensor) -> None:
        """Take in one denoising step; a finished canvas is settled."""
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
            self.events.put(self._frame(before, after))
        if after.reason:
            self._settle(after, hidden)
        elif after.stable:
            self._emit_prefix(after, hidden)

    def _frame(self, before: Canvas, after: Canvas) -> Event:
        assert after.argmax is not None and after.entropy is not None
        entropy = (after.entropy * ENTROPY_PER_NAT).round().clamp(max=255)
        return Event(
            type="frame",
            index=self.progress.request.index,
            canvas=before.index,
            step=before.step,
            ids=tuple(after.argmax.tolist()),
            accepted=states(after),
            entropy=bytes(entropy.to(torch.uint8).tolist()),
        )

    def _settle(self, canvas: Canvas, hidden: Tensor) -> None:
        """Commit a finished canvas, or denoise it further so that it fits its language."""
        progress, control = self.progress, self.control
        if control is not None and control.read_only:
            assert canvas.argmax is not None
            progress.committed = canvas.argmax.tolist()
            progress.scores = self._scores(canvas, progress.committed, hidden)
            progress.finish("stop")
            return
        if self.constrained is None:
            commit = finish(canvas, self.spec)
        else:
            resolved = self.constrained.resolve(
                canvas, hidden, self.vocabulary, self.spec, progress.room
            )  # fmt: skip
            progress.constraint = self.constrained.report
            if isinstance(resolved, Canvas):
                self.canvas = resolved
                return
            commit = resolved
        self.canvas = None
        ids, steps = list(commit.token_ids), canvas.step - canvas.begun
        progress.scores += self._scores(canvas, ids[progress.emitted :], hidden)
        self._emit(progress.commit(ids, commit.ended, steps, canvas.reason))
        self._go_on(ids)

    def _emit_prefix(self, canvas: Canvas, hidden: Tensor) -> None:
        """Commit what of a canvas that goes on can no longer change.

        There is no end id among it: a canvas that is settled up to an end id is finished.
        """
        assert canvas.argmax is not None
        progress = self.progress
        fresh = progress.pending_ids(canvas.argmax[: canvas.stable].tolist())
        if fresh:
            progress.scores += self._scores(canvas, fresh, hidden)
            self._emit(progress.commit_prefix(fresh, canvas.step - canvas.begun))

    def _scores(self, canvas: Canvas, ids: Sequence[int], hidden: Tensor) -> list[TokenScore]:
        """Of the ids that follow those told, where they are asked for."""
        if canvas.logprobs is None:
            return []
        params, emitted = self.progress.request.params, self.progress.emitted
        asked = len(params.logprob_token_ids or ())
        return token_scores(canvas, ids, asked, hidden, self.vocabulary, emitted)

    def _emit(self, event: Event) -> None:
        """Ask whether a commit was enough, and report it."""
        try:
            if self.should_stop is not None and self.should_stop(event.ids):
                if not event.whole:
                    self.progress.canvases += 1  # it ends with the answer
                self.progress.finish("stop")
        except Exception as error:  # this request's alone
            emitted = (
                str(error) if isinstance(error, DGemmaError) else f"{type(error).__name__}: {error}"
            )
            self.progress.finish("error", emitted)
        self.events.put(event)

    def _chose(self, token: int) -> None:
        progress = self.progress
        progress.steps += 1
        ended = token in self.spec.end_ids
        ids = [] if ended else [token]
        self._emit(progress.commit(ids, ended, 1))
        self._go_on(ids)

    def _go_on(self, ids: list[int]) -> None:
        """Close a thought that has outgrown its budget, and queue what must be encoded next."""
        progress = self.progress
        if progress.output is not None:
            return
        thought = progress.request.thought
        budget = progress.request.params.thinking_budget
        if thought is not None and budget_exceeded(progress.committed, thought, budget):
            if self.constrained is not None:
                self.constrained.force([thought.close_id])
            self._emit(progress.close_thought(thought.close_id))
            ids = [*ids, thought.close_id]
        progress.go_on(ids)
