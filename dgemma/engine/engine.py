"""The engine: takes requests, runs one pass at a time over rows in any phase, reports events.

    plan      the scheduler says who takes part, and which pages they have
    pass      one forward over all parts, then the vocabulary for all canvases
    apply     each row takes in what the pass found for it: a frame, a commit, its end

What goes wrong in a pass is found out by running its halves: only the request that is to blame
ends. Knows the model, the sampler and the pages. Knows nothing about text, files or servers, and
has no thread of its own: whoever waits for an event drives it, one step at a time, under a lock.
`Worker` gives it a thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from dgemma.device import free_bytes
from dgemma.diffusion.canvas import CanvasSpec
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.control import check_control
from dgemma.diffusion.schedule import Schedule
from dgemma.engine.batch import ModelRunner, Work, out_of_memory
from dgemma.engine.counters import Clock, Counters
from dgemma.engine.events import EventStream
from dgemma.engine.job import Job, Scheduled
from dgemma.engine.pages import Pages
from dgemma.engine.request import ModelLimits, Progress, resolve
from dgemma.engine.row import Row, ShouldStop, StepResult
from dgemma.engine.scheduler import Scheduler
from dgemma.errors import InvalidRequest
from dgemma.kernels.vocabulary import Vocabulary
from dgemma.model.cache import PagedMemory
from dgemma.model.size import page_bytes, page_counts
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.types import Event, Request

CHUNK = 1024
"""Most prompt tokens of one request that a step encodes."""

SHARE = {"cpu": 0.25, "cuda": 0.8}
"""Part of a device's free memory that keys and values may take."""

TRIES = 3
"""How often a request that runs out of memory alone is tried before it ends."""


class Engine:
    """Runs any number of requests on one model.

    A request's tokens do not depend on the others: its random numbers come from its own seed, its
    keys are never padded, and every row of a product is computed by itself.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        end_ids: Sequence[int] | None = None,
        defaults: SamplingParams | None = None,
        chunk: int = CHUNK,
        cache_bytes: int | None = None,
        max_running: int = 32,
        max_tokens: int = 8192,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            model: on its device, in eval mode.
            end_ids: ids that end an answer; None: those of the config.
            defaults: the checkpoint's own sampler.
            chunk: most prompt tokens of one request that a step encodes.
            cache_bytes: memory for keys and values; None: a share of what is free.
            max_running, max_tokens, max_waiting: see `Scheduler`.
            clock: seconds, for deadlines and ageing.

        Raises:
            InvalidRequest: `cache_bytes` does not suffice for one request, or a bound below 1.
        """
        for name, value in (("chunk", chunk), ("max_running", max_running),
                            ("max_tokens", max_tokens), ("max_waiting", max_waiting)):  # fmt: skip
            if value < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {value}")
        config = model.config
        self.model = model
        self.defaults = defaults or SamplingParams()
        self.chunk = chunk
        self.spec = CanvasSpec(
            length=config.canvas_length,
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            end_ids=tuple(config.eos_token_ids if end_ids is None else end_ids),
            pad_id=config.pad_token_id,
            suppress_ids=config.suppress_ids,
            device=model.device,
        )
        self.vocabulary = Vocabulary(
            model.embed.weight, config.final_logit_softcapping, model.embed_scale()
        )
        budget = cache_bytes
        if budget is None:
            budget = int(free_bytes(model.device) * SHARE[model.device.type])
        full, sliding = page_counts(config, model.dtype, budget, max_running, chunk)
        self.memory = PagedMemory(config, full, sliding, model.dtype, model.device)
        self.page_bytes = page_bytes(config, model.dtype)
        self._scheduler = partial(
            Scheduler, chunk=chunk, max_running=max_running, max_tokens=max_tokens,
            max_waiting=max_waiting,
        )  # fmt: skip
        self._pages = partial(Pages, full, sliding, config.sliding_window)
        self.scheduler = self._scheduler(self._pages())
        self.limits = ModelLimits(
            context=min(self.spec.context_length, self.scheduler.pages.capacity),
            canvas=self.spec.length,
            vocab_size=self.spec.vocab_size,
            bounded=self.scheduler.pages.capacity < self.spec.context_length,
        )
        self._clock = clock
        self._rows: dict[Job, Row] = {}
        self._counted = Clock()
        self.batch = ModelRunner(model, self.vocabulary, self.memory, self._counted)
        self.added = 0
        self._cancels: deque[Row] = deque()
        self._lock = threading.RLock()
        self._busy = False

    # -- requests ------------------------------------------------------------------------------

    def prepare(
        self,
        request: Request,
        should_stop: ShouldStop | None = None,
        constrained: ConstrainedAnswer | None = None,
    ) -> Row:
        """Check a request and make its row. Changes nothing; any thread may call it.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured.
        """
        resolved = resolve(request, self.defaults, self.limits, seed=secrets.randbits(63))
        spec = self.spec.narrowed(resolved.params)
        progress = Progress(resolved, replace(self.limits, canvas=spec.length))
        row = Row(
            Job(progress), spec, Schedule.of(resolved.params), self.vocabulary, should_stop,
            constrained,
        )  # fmt: skip
        if constrained is not None and resolved.params.stable_prefix:
            raise InvalidRequest(
                f"stable_prefix and {constrained.report.mode} cannot be combined: what is "
                "emitted early could not be repaired; drop one of them"
            )
        if resolved.mode == "diffusion":
            if resolved.canvas is not None:
                check_control(resolved.canvas, spec)
                if constrained is not None:
                    constrained.check(resolved.canvas)
            row.first()  # what is wrong with it is wrong now
        return row

    def add(self, row: Row) -> None:
        """Take a prepared row in."""
        with self._alone():
            self.added += 1
            older = self.scheduler.add(row.job, self._clock())
            self._rows[row.job] = row
            row.status("queued")
            row.begin()
            if older is not None:
                self._rows[older].progress.finish("cancelled")
                self._retire(self._rows[older])
            if row.progress.output is not None:
                self._retire(row)

    def submit(
        self,
        request: Request,
        should_stop: ShouldStop | None = None,
        constrained: ConstrainedAnswer | None = None,
    ) -> EventStream:
        """Take a request; it runs while its stream, or any other, is iterated.

        Args:
            should_stop: see `ShouldStop`. Called within the step, so a request ends at the same
                place however late its events are read.
            constrained: keeps the answer in a language; of this request alone.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
        """
        row = self.prepare(request, should_stop, constrained)
        self.scheduler.check_waiting()
        self.add(row)
        return EventStream(row.events, partial(self.cancel, row), self.step)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes anything, not even this thread in a collection of garbage."""
        with self._lock:
            before, self._busy = self._busy, True
            try:
                yield
            finally:
                self._busy = before
                if not before:
                    self._cancel_all()

    def fail(self, row: Row, error: str) -> None:
        """End a request that could not be added, or only by half, with an error."""
        with self._alone():
            if row.job in self._rows:
                row.progress.finish("error", error)
                self._retire(row)
            elif row.progress.output is None:
                row.progress.finish("error", error)
                self._report(row)

    @property
    def running(self) -> int:
        """Requests that are not finished."""
        return len(self._rows)

    def cancel(self, row: Row) -> None:
        """End a request now, or after the step that runs; harmless after the end."""
        self._cancels.append(row)
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy:  # else this very thread is in the middle of a step
                    self._cancel_all()
            finally:
                self._lock.release()

    def _cancel_all(self) -> None:
        while self._cancels:
            row = self._cancels.popleft()
            if row.job in self._rows:
                row.progress.finish("cancelled")
                self._retire(row)

    def end_all(self, error: str | None = None) -> None:
        """Cancel every request; or end it with an error, where the engine itself cannot go on."""
        with self._alone():
            rows = list(self._rows.values())
            self._rows.clear()
            for row in rows:
                row.progress.finish("error" if error else "cancelled", error)
                self._report(row)
            self._counted.preemptions += self.scheduler.preemptions
            self._counted.hit_tokens += self.scheduler.pages.hit_tokens
            self.scheduler = self._scheduler(self._pages())

    # -- a step --------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """One pass over the rows that the scheduler chooses, whatever their phase."""
        with self._alone():
            self._cancel_all()
            begin = self._counted.now()
            plan = self.scheduler.plan(self._clock())
            for job, why in plan.failed:
                self._rows[job].progress.finish("error", why)
                self._retire(self._rows[job])
            self._counted.add("schedule", begin)
            for scheduled in plan.scheduled:
                if scheduled.count:
                    self._rows[scheduled.job].status("encoding")
            if plan.scheduled:
                self._run([(self._rows[scheduled.job], scheduled) for scheduled in plan.scheduled])

    def _run(self, work: list[Work]) -> None:
        """A pass; on an error its halves, each by itself, until the one to blame is alone."""
        results, memory, fault = list[StepResult](), False, ""
        self._counted.passes += 1
        try:
            results = self.batch.run(work, self.spec)
        except Exception as error:
            memory, fault = out_of_memory(error), f"{type(error).__name__}: {error}"
        if fault:  # the exception is gone, and with it the tensors of the pass that failed
            self._halve(work, memory, fault)
            return
        begin = self._counted.now()
        for (row, scheduled), result in zip(work, results, strict=True):
            row.tries = 0
            self._apply(row, scheduled, result)
        self._counted.add("apply", begin)

    def _halve(self, work: list[Work], memory: bool, fault: str) -> None:
        """After a pass that failed."""
        if memory:
            self.scheduler.shrink(sum(scheduled.size for _, scheduled in work))
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
        if len(work) > 1:
            middle = len(work) // 2
            self._run(work[:middle])
            self._run(work[middle:])
            return
        row = work[0][0]
        row.tries += 1
        if not memory or row.tries >= TRIES:
            why = "out of memory, with nothing beside it: " if memory else ""
            row.progress.finish("error", why + fault)
            self._retire(row)

    def _apply(self, row: Row, scheduled: Scheduled, result: StepResult) -> None:
        """A row takes in what a pass found; what fails here fails for this request alone."""
        try:
            before = len(row.progress.committed)
            if not result.finite:
                row.progress.finish(
                    "error",
                    "encoding gave numbers that are not finite; try another dtype, or check the "
                    "weights with `dgemma check`",
                )
            elif scheduled.count:
                self.scheduler.encoded(row.job, scheduled.count)
                self._counted.encoded += scheduled.count
                row.encoded(result, scheduled.count)
            if result.finite and result.canvas is not None:
                assert result.hidden is not None
                row.stepped(result.canvas, result.hidden)
                self._counted.steps += 1
            self._counted.committed += len(row.progress.committed) - before
        except Exception as error:
            row.progress.finish("error", f"{type(error).__name__}: {error}")
        if row.progress.output is not None:
            self._retire(row)

    def _retire(self, row: Row) -> None:
        """Take a finished row out and report its end."""
        if self._rows.pop(row.job, None) is None:
            return
        try:
            self.scheduler.remove(row.job)
        finally:  # whatever is wrong here, nobody may wait for this row
            self._report(row)

    def _report(self, row: Row) -> None:
        output = row.progress.output
        assert output is not None
        self._counted.ended(output.finish_reason)
        row.events.put(Event(type="done", index=output.index, output=output))

    def forget(self) -> None:
        """Drop the keys and values that are only kept for later requests."""
        with self._alone():
            self.scheduler.pages.forget()

    # -- what there is to see ------------------------------------------------------------------

    def counters(self) -> Counters:
        """Plain numbers about what runs and what has run."""
        scheduler, pages = self.scheduler, self.scheduler.pages
        return Counters(
            waiting=scheduler.waiting,
            running=len(scheduler.running),
            pages_full=pages.full.count,
            pages_full_used=pages.full.count - pages.available,
            pages_full_cached=pages.cached,
            pages_sliding=pages.sliding.count,
            pages_sliding_free=pages.sliding.free,
            prefix_hit_tokens=self._counted.hit_tokens + pages.hit_tokens,
            preemptions=self._counted.preemptions + scheduler.preemptions,
            **self._counted.numbers(),
        )
