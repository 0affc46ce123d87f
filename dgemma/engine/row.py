"""One live request with its tensors, and what a pass does to it.

Knows the sampler and the request's own pages. Knows nothing about other rows, order or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dgemma.diffusion.canvas import Canvas, CanvasSpec, trace_step
from dgemma.diffusion.sampler import finish, start
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.thought import budget_exceeded
from dgemma.engine.job import Job, Turn
from dgemma.engine.mailbox import Mailbox
from dgemma.engine.request import Progress
from dgemma.errors import DGemmaError
from dgemma.model.cache import PagedMemory
from dgemma.model.transformer import Part
from dgemma.types import ENTROPY_PER_NAT, Event

Enough = Callable[[tuple[int, ...]], bool]
"""Shown the ids of every commit in turn; True ends the request with "stop"."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a pass found for one row.

    Attributes:
        canvas: after a denoising step, else None.
        token: what the twin chooses next; None: nothing to choose.
        finite: whether what was encoded is.
    """

    canvas: Canvas | None = None
    token: int | None = None
    finite: bool = True


@dataclass(slots=True, eq=False)
class Row:
    """A live request: its place in the schedule, the canvas being denoised if any, its events.

    Attributes:
        tries: how often in a row memory did not suffice for it alone.
    """

    job: Job
    spec: CanvasSpec
    schedule: Schedule
    enough: Enough | None = None
    canvas: Canvas | None = None
    mail: Mailbox = field(default_factory=Mailbox)
    tries: int = 0

    @property
    def progress(self) -> Progress:
        """Where the request stands."""
        return self.job.progress

    def parts(self, memory: PagedMemory, turn: Turn) -> list[Part]:
        """What the row brings to a pass: ids to encode, its canvas, or both in this order.

        A canvas that is there already when ids are encoded was begun before the row was set back.
        """
        progress, table = self.progress, self.job.table
        assert table is not None
        done, out = progress.encoded, list[Part]()
        if turn.count:
            cache = memory.row(done, table.full, table.sliding, progress.borders)
            ids = progress.context[done : done + turn.count]
            out.append((cache, torch.tensor(ids, device=self.spec.device), False, None))
        if turn.denoise:
            if self.canvas is None:
                self.canvas = start(progress.seed, progress.canvases, self.spec)
            cache = memory.row(done + turn.count, table.full, table.sliding)
            out.append((cache, self.canvas.ids, True, self.canvas.soft))
        return out

    def begin(self) -> None:
        """A budget of no thought at all closes the prompt's own thought before the first canvas."""
        self._go_on([])

    def encoded(self, token: int | None) -> None:
        """Take in what was encoded, and the twin's next token where it was the last."""
        progress = self.progress
        if progress.encoded == len(progress.context):
            progress.encoded_all()
        if token is not None:
            self._chose(token)

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
            self.mail.put(self._frame(before, after))
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
        """Ask whether a commit was enough, and report it."""
        try:
            if self.enough is not None and self.enough(event.ids):
                self.progress.finish("stop")
        except Exception as error:  # this request's alone
            told = (
                str(error) if isinstance(error, DGemmaError) else f"{type(error).__name__}: {error}"
            )
            self.progress.finish("error", told)
        self.mail.put(event)

    def _chose(self, token: int) -> None:
        progress = self.progress
        progress.steps += 1
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
