"""The engine: takes requests, runs one pass at a time over sequences in any phase, emits events.

    plan      the scheduler chooses the sequences that take part, and gives them pages
    pass      one forward over all parts, then the vocabulary for all canvases
    apply     each sequence takes in its result: a frame, a commit, its end

After a pass that failed the engine runs its halves, so that only the request to blame ends. It
must not know text, files or servers. It has no thread of its own: whoever waits for an event
drives it, one step at a time, under a lock. `Worker` gives it a thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from dgemma.device import free_bytes
from dgemma.diffusion.canvas import CanvasSpec
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.diffusion.schedule import Schedule
from dgemma.engine.batch import ModelRunner, out_of_memory
from dgemma.engine.commit import CanvasState, go_on
from dgemma.engine.counters import Counters
from dgemma.engine.drafting import plan_draft
from dgemma.engine.pages import Pages
from dgemma.engine.plan import Scheduled
from dgemma.engine.request import ModelLimits, resolve_request
from dgemma.engine.scheduler import Scheduler
from dgemma.engine.searches import BUDGET, SearchQueue
from dgemma.engine.sequence import Sequence
from dgemma.engine.step import NOT_FINITE, StepResult, apply, check_first
from dgemma.errors import InvalidRequest
from dgemma.events import EventQueue, EventStream
from dgemma.interfaces import Reader, TextSide
from dgemma.model.cache import PagedMemory
from dgemma.model.size import page_bytes, page_counts, window_pages
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import DRAWN_BITS, SamplingParams
from dgemma.types import PAGE, Event, FinishReason, Request

CHUNK = 1024
"""Most prompt tokens of one request that a step encodes."""

SHARE = {"cpu": 0.25, "cuda": 0.8, "mps": 0.5}
"""Part of a device's free memory that keys and values may take."""

MOST_TOKENS = {"cpu": CHUNK, "cuda": 8 * CHUNK, "mps": CHUNK}
"""Most tokens of a pass, beside a canvas. On a CPU more are no faster, and newcomers wait."""

SHARED_CANVASES = 4
"""Canvases of a pass that owners divide evenly, see `shared` of `Scheduler`."""

TRIES = 3
"""How often a request that runs out of memory alone is tried before it ends."""


class Engine:
    """Runs any number of requests on one model.

    A request's tokens do not depend on the others: its random numbers come from its own seed, its
    keys are never padded, and every row of a product is computed by itself.

    Attributes:
        frontend: makes the reader and the grammar of each request; None: the engine knows only
            ids, and its events have no text.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        end_ids: Iterable[int] | None = None,
        defaults: SamplingParams | None = None,
        chunk: int = CHUNK,
        cache_bytes: int | None = None,
        max_running: int = 32,
        max_tokens: int | None = None,
        max_waiting: int = 1024,
        share_prefix_cache: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            model: on its device, in eval mode.
            end_ids: ids that end an answer; None: those of the config.
            defaults: the checkpoint's own sampler.
            chunk: most prompt tokens of one request that a step encodes.
            cache_bytes: memory for keys and values; None: a share of the free memory.
            max_running, max_tokens, max_waiting: see `Scheduler`; None: `MOST_TOKENS`.
            share_prefix_cache: whether all owners share cached keys and values; else only those of
                what the chat template itself begins with.
            clock: seconds, for deadlines, ageing and the times of events.

        Raises:
            InvalidRequest: `cache_bytes` does not suffice for one request, or a bound below 1.
        """
        most = MOST_TOKENS[model.device.type] + model.config.canvas_length
        max_tokens = most if max_tokens is None else max_tokens
        for name, value in (("chunk", chunk), ("max_running", max_running),
                            ("max_tokens", max_tokens), ("max_waiting", max_waiting)):  # fmt: skip
            if value < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {value}")
        config = model.config
        self.model = model
        self.frontend: TextSide | None = None
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
        if cache_bytes is None:
            cache_bytes = int(free_bytes(model.device) * SHARE[model.device.type])
        full, sliding = page_counts(config, model.cache_dtypes, cache_bytes, max_running, chunk)
        self.memory = PagedMemory(config, full, sliding, model.cache_dtypes, model.device)
        self.page_bytes = page_bytes(config, model.cache_dtypes)
        self._scheduler = partial(
            Scheduler, chunk=chunk, max_running=max_running, max_tokens=max_tokens,
            max_waiting=max_waiting, shared=SHARED_CANVASES * config.canvas_length,
        )  # fmt: skip
        self._pages = partial(Pages, full, sliding, config.sliding_window)
        self.scheduler = self._scheduler(self._pages())
        self.limits = ModelLimits(
            context=min(self.spec.context_length, full * PAGE), canvas=self.spec.length,
            vocab_size=self.spec.vocab_size, bounded=full * PAGE < self.spec.context_length,
            pages=full, spare=sliding - window_pages(config, chunk),
        )  # fmt: skip
        self._clock = clock
        self._share = share_prefix_cache
        self._live: set[Sequence] = set()
        self.searches = SearchQueue(BUDGET)
        self._counted = Counters()
        self.batch = ModelRunner(model, self.memory, self._counted)
        self._cancels: deque[Sequence] = deque()
        self._lock = threading.RLock()
        self._busy = False

    # -- requests ------------------------------------------------------------------------------

    def prepare(self, request: Request) -> Sequence:
        """Check a request and make its sequence: what it does not say, its reader, its grammar.

        Changes nothing; any thread may call it, and a grammar that is new takes long.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured.
            MissingExtra, TokenizerError: something is missing that its text needs.
        """
        frontend, arrived = self.frontend, self._clock()
        if frontend is None and request.needs_text:
            raise InvalidRequest("an engine without a frontend knows only ids; set Engine.frontend")
        request, closed = (request, False) if frontend is None else frontend.closed(request)
        thought = None if frontend is None else frontend.thought(request)
        seed = secrets.randbits(DRAWN_BITS)
        resolved = resolve_request(request, self.defaults, self.limits, seed, thought)
        spec = self.spec.narrowed(resolved.params)
        found = None if frontend is None else frontend.matcher(resolved)
        constrained = None if found is None else ConstrainedAnswer(*found)
        if constrained is not None and resolved.params.stable_prefix:
            raise InvalidRequest(
                f"stable_prefix and {constrained.report.mode} cannot be combined: text that is "
                "emitted early could not be repaired; drop one of them"
            )
        diffusion, learnt = resolved.mode == "diffusion", self.limits.learnt
        common = 0 if frontend is None else frontend.common(resolved)
        seq = Sequence(
            resolved,
            width=spec.length if diffusion else 1,
            context_length=self.limits.room(resolved.params),
            reader=Reader() if frontend is None else frontend.reader(resolved),
            state=CanvasState(
                spec, Schedule.of(resolved.params if diffusion else self.defaults.once()),
                self.model.head, constrained,
                least_logprob=learnt.least_logprob if resolved.params.quality else None,
            ),
            common=self.limits.context if self._share else common,
            thought_closed=closed, arrived=arrived, events=EventQueue(self._clock, arrived),
        )  # fmt: skip
        if diffusion:
            check_first(seq)
        elif resolved.mode == "exact":
            plan_draft(seq)
        return seq

    def add(self, seq: Sequence) -> None:
        """Queue a prepared sequence."""
        with self._alone():
            older = self.scheduler.add(seq, self._clock())
            self._live.add(seq)
            seq.report_status("queued")
            go_on(seq, [])
            if older is not None:
                self._end(older, "cancelled")
            if seq.output is not None:
                self._retire(seq)

    def submit(self, request: Request) -> EventStream:
        """Take a request; it runs while its stream, or any other, is iterated.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured; nothing was started.
            MissingExtra, TokenizerError: something is missing that its text needs.
            Overloaded: too many requests wait.
        """
        seq = self.prepare(request)
        self.scheduler.check_waiting(seq.owner)
        self.add(seq)
        return EventStream(seq.events, partial(self.cancel, seq), self.step)

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

    def fail(self, seq: Sequence, error: str) -> None:
        """End with an error a request that could not be added, or only by half."""
        with self._alone():
            if seq in self._live:
                self._end(seq, "error", error)
            elif seq.output is None:
                seq.finish("error", error)
                seq.events.put(self._count(seq))

    @property
    def running(self) -> int:
        """Requests that are not finished."""
        return len(self._live)

    def cancel(self, seq: Sequence) -> None:
        """End a request now, or after the step that runs; harmless after the end."""
        self._cancels.append(seq)
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy:  # else this very thread is in the middle of a step
                    self._cancel_all()
            finally:
                self._lock.release()

    def _cancel_all(self) -> None:
        while self._cancels:
            self._end(self._cancels.popleft(), "cancelled")

    def end_all(self, error: str | None = None) -> None:
        """Cancel every request; with an error, if the engine itself cannot go on."""
        with self._alone():
            live, self._live = self._live, set()
            for seq in live:
                seq.finish("error" if error else "cancelled", error)
                seq.events.put(self._count(seq))
            self._counted.preemptions += self.scheduler.preemptions
            self._counted.prefix_hit_tokens += self.scheduler.pages.hit_tokens
            self.scheduler = self._scheduler(self._pages())
            self.searches.clear()

    # -- a step --------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """One pass over the sequences that the scheduler chooses, and a part of each search."""
        with self._alone():
            self._cancel_all()
            begin = self._counted.now()
            plan = self.scheduler.plan(self._clock())
            for seq, why in plan.failed.items():
                self._end(seq, "error", why)
            self._counted.add_time("schedule", begin)
            for scheduled in plan.scheduled:
                if scheduled.count:
                    scheduled.sequence.report_status("encoding")
            if plan.scheduled:
                self._run(plan.scheduled)
            self._search()

    def _run(self, work: list[Scheduled]) -> None:
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
        for scheduled, result in zip(work, results, strict=True):
            self._apply(scheduled, result)
        self._counted.add_time("apply", begin)

    def _halve(self, work: list[Scheduled], memory: bool, fault: str) -> None:
        """After a pass that failed."""
        if memory:
            self.scheduler.shrink(sum(scheduled.size for scheduled in work))
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
        if len(work) > 1:
            middle = len(work) // 2
            self._run(work[:middle])
            self._run(work[middle:])
            return
        seq = work[0].sequence
        seq.faults += 1
        if not memory or seq.faults >= TRIES:
            why = "out of memory, with nothing beside it: " if memory else ""
            self._end(seq, "error", why + fault)

    def _apply(self, scheduled: Scheduled, result: StepResult) -> None:
        """Give a sequence its result; an exception ends this request alone."""
        seq = scheduled.sequence
        before, seq.faults = len(seq.committed), 0
        try:
            if not result.finite:
                seq.finish("error", f"while encoding, {NOT_FINITE}")
            else:
                if not scheduled.reading:
                    self._encoded(seq, scheduled.count)
                self._encoded(seq, apply(scheduled, result))
                self._counted.steps += scheduled.denoise
                self._counted.committed_tokens += len(seq.committed) - before
        except Exception as error:
            seq.finish("error", f"{type(error).__name__}: {error}")
        if seq.output is not None:
            self._retire(seq)
        elif seq.search is not None:
            self.searches.add(seq)

    def _encoded(self, seq: Sequence, count: int) -> None:
        """Record the next tokens of a context as encoded."""
        if count:
            self.scheduler.encoded(seq, count)
            self._counted.encoded_tokens += count

    def _search(self) -> None:
        """Go on with the searches for as many steps as their budget allows."""
        begin, sequences = self._counted.now(), self.searches.sequences
        before = sum(len(seq.committed) for seq in sequences)
        ended = self.searches.advance()
        self._counted.committed_tokens += sum(len(seq.committed) for seq in sequences) - before
        for seq in ended:
            if seq.output is not None:
                self._retire(seq)
        self._counted.add_time("apply", begin)

    def _end(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """End a request, unless it has ended."""
        if seq in self._live:
            seq.finish(reason, error)
            self._retire(seq)

    def _retire(self, seq: Sequence) -> None:
        """Take a finished sequence out and report its end."""
        self._live.remove(seq)
        done = self._count(seq)  # before it leaves its place: it is always in one or the other
        self.searches.discard(seq)
        try:
            self.scheduler.remove(seq)
        finally:  # even after a fault here nobody may wait for this sequence
            seq.events.put(done)

    def _count(self, seq: Sequence) -> Event:
        """Count a finished sequence; its last event."""
        assert seq.done is not None and seq.done.output is not None
        self._counted.add_end(seq.done.output.finish_reason, seq.restarts)
        self.limits.learnt.learn(seq.request.params, seq.converged, self.defaults)
        return seq.done

    def forget(self) -> None:
        """Drop the keys and values that are only kept for later requests."""
        with self._alone():
            self.scheduler.pages.forget()

    def counters(self) -> Counters:
        """The state of the engine and its work so far, as plain numbers."""
        found = self._counted.beside(self.scheduler)  # places first: who left them is counted
        return replace(found, restart_after=self.limits.learnt.restart_after or 0)
