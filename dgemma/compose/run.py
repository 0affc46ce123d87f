"""Runs requests and plans to their end, beside all others; `submit` starts one request.

One generator follows a plan, `_follow`. It says what has to be done next; `PlanStream` does it for
callers that wait, `plan_events` for those in an event loop. Both yield the same events.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

from dgemma.compose.drafts import best, drafts
from dgemma.compose.plan import Place, Plan, Round, Settled, check_fresh
from dgemma.compose.streams import SideBySide, Submit, merge
from dgemma.errors import EngineError
from dgemma.events import EventStream
from dgemma.frontend import Frontend
from dgemma.params import SamplingParams
from dgemma.types import Event, Output, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvent(Generic[T]):
    """Something that happened to a plan.

    Attributes:
        type: "status", "frame" or "commit": it happened to one of the plan's requests; "text": a
            part's text goes on and can no longer change; "done": the plan is done, the last.
        request: number of that request, in the order in which the plan asks, from 0.
        event: the engine's, with its text.
        places: where that request writes; empty if it only looks for something.
        part: on "text": number of the hole, span or segment.
        text: on "text": what follows the part's text so far.
        result: on "done" alone.
    """

    type: Literal["status", "frame", "commit", "text", "done"]
    request: int = 0
    event: Event | None = None
    places: tuple[Place, ...] = ()
    part: int = 0
    text: str = ""
    result: T | None = None

    @property
    def outcome(self) -> T:
        """The result, on "done"."""
        assert self.type == "done"
        return cast(T, self.result)


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """The plan's result. (No future can hold a StopIteration.)"""

    result: T


@dataclass(frozen=True, slots=True)
class _Start:
    """Start these requests."""

    requests: Sequence[Request]


_NEXT = "the next event of the requests that run"
_Task = _Start | str | Callable[[], Any]
"""What a face of the runner has to do: `_Start`, `_NEXT`, or some plain work."""


def _advance(plan: Plan[T], outputs: Sequence[Output] | None) -> Round | Settled | _Done[T]:
    try:
        return next(plan) if outputs is None else plan.send(outputs)
    except StopIteration as over:
        return _Done(over.value)


def begun(plan: Plan[T]) -> Plan[T]:
    """The same plan, after its work up to the first request: a refusal comes now.

    Raises:
        DGemmaError: the plan cannot be carried out.
    """
    check_fresh(plan, "stream_plan")
    return _resumed(plan, _advance(plan, None))


def _resumed(plan: Plan[T], step: Round | Settled | _Done[T]) -> Plan[T]:
    with contextlib.closing(plan):
        while not isinstance(step, _Done):
            step = _advance(plan, (yield step))
        return step.result


def _follow(
    plan: Plan[T], frames: bool, search: bool, alternatives: int = 0
) -> Generator[_Task | PlanEvent[T], Any, None]:
    """The tasks of a plan, each answered by what it gave, and its events, answered by nothing."""
    outputs: Sequence[Output] | None = None
    view: _View[T] = _View(frames, search, alternatives)
    try:
        while True:
            step = yield partial(_advance, plan, outputs)
            if isinstance(step, _Done):
                yield PlanEvent(type="done", result=step.result)
                return
            outputs = ()
            if isinstance(step, Settled):
                yield from view.settled(step)
                continue
            yield _Start(view.begin(step))
            found: dict[int, Output] = {}
            while len(found) < len(step.requests):
                number, event = yield _NEXT
                if event.output is not None:
                    found[number] = event.output
                else:
                    yield from view.seen(number, event)
            outputs = [found[number] for number in range(len(found))]
    finally:
        with contextlib.suppress(ValueError):  # a thread is still within the plan
            plan.close()


class _View(Generic[T]):
    """Which events of a plan's requests are shown.

    Of several requests of which one will be taken the first is shown. Only the chosen one is
    committed. If it was not the one shown, its last frame comes first.
    """

    def __init__(self, frames: bool, search: bool, alternatives: int = 0) -> None:
        self._frames, self._search, self._alternatives = frames, search, alternatives
        self._round = Round(requests=())
        self._first = 0  # number of the round's first request
        self._last: dict[int, PlanEvent[T]] = {}  # frames that may still be shown
        self._commits: dict[int, list[PlanEvent[T]]] = {}

    def begin(self, step: Round) -> list[Request]:
        """The requests of a round, as they are to be asked."""
        self._first += len(self._round.requests)
        self._round = step
        self._last, self._commits = {}, {}
        shown = self._frames and (self._search or bool(step.places))
        return [
            replace(
                request,
                frames=shown,
                status=shown and self._leads(number),
                alternatives=self._alternatives if shown else 0,
            )  # fmt: skip
            for number, request in enumerate(step.requests)
        ]

    def _leads(self, number: int) -> bool:
        return self._search or number == 0 or not self._round.choice

    def seen(self, number: int, event: Event) -> Iterator[PlanEvent[T]]:
        """The events to show after one of a request."""
        places = self._round.places
        if event.type == "done" or not (places or self._search):
            return
        shown: PlanEvent[T] = PlanEvent(
            type=event.type, request=self._first + number, event=event,
            places=tuple(places[number]) if places else (),
        )  # fmt: skip
        if self._round.choice and event.type == "commit":
            self._commits.setdefault(number, []).append(shown)
        elif self._leads(number):
            yield shown
        else:
            self._last[number] = shown

    def settled(self, step: Settled) -> Iterator[PlanEvent[T]]:
        """The events to show when text is settled."""
        if step.taken is not None:
            if step.taken in self._last:
                yield self._last.pop(step.taken)
            yield from self._commits.pop(step.taken, ())
        if step.text:
            yield PlanEvent(type="text", part=step.part, text=step.text)


class PlanStream(Iterator[PlanEvent[T]]):
    """The events of a plan. It goes on while it is read, and asks its next requests then.

    `close` works at any time and from any thread: it cancels the requests that run. So does
    dropping the stream; `with` closes it at the end. `plan_events` is for event loops.
    """

    def __init__(
        self, submit: Submit, plan: Plan[T], *, frames: bool = True, search: bool = False
    ) -> None:
        """
        Args:
            frames: whether drafts of the requests that write are shown.
            search: whether those that only look for something are shown, too.
        """
        self._submit = submit
        self._tasks = _follow(plan, frames, search)
        self._running = SideBySide(submit, ())
        self._closed = False
        self._done: PlanEvent[T] | None = None

    def __next__(self) -> PlanEvent[T]:
        if self._closed:
            raise StopIteration
        try:
            return self._event()
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def _event(self) -> PlanEvent[T]:
        answer: Any = None
        while True:
            task = self._tasks.send(answer)
            if isinstance(task, PlanEvent):
                self._done = task if task.type == "done" else None
                return task
            if isinstance(task, _Start):
                self._running, answer = SideBySide(self._submit, task.requests), None
                if self._closed:
                    self._running.close()
            else:
                answer = task() if callable(task) else next(self._running)

    def result(self) -> T:
        """Run to the end and return the plan's result; after an error nothing runs on.

        Raises:
            EngineError: a request failed, or the stream was closed before.
        """
        try:
            for _ in self:
                pass
        finally:
            self.close()
            self._running.wait()
        if self._done is None:
            raise EngineError("the plan was closed before its end; call again")
        return self._done.outcome

    def close(self) -> None:
        """Cancel the requests that run; the plan asks no further one."""
        self._closed = True
        self._running.close()

    def __enter__(self) -> PlanStream[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # nobody can read the events any more


async def plan_events(
    plan: Plan[T], start: Callable[[Sequence[Request]], Awaitable[list[EventStream]]],
    work: Callable[[Callable[[], Any]], Awaitable[Any]], *, frames: bool, search: bool = False,
    alternatives: int = 0,
) -> AsyncGenerator[PlanEvent[T], None]:  # fmt: skip
    """The events of a plan in an event loop; closing this ends all that it has begun.

    Args:
        start: starts requests together, or none of them.
        work: does plain work without holding up the loop.
        frames, search: as for `PlanStream`.
        alternatives: see `Request`.
    """
    tasks = _follow(plan, frames, search, alternatives)
    streams: list[EventStream] = []
    events: AsyncGenerator[tuple[int, Event], None] = merge([])
    answer: Any = None
    try:
        while True:
            task = tasks.send(answer)
            if isinstance(task, PlanEvent):
                answer = None
                yield task
                if task.type == "done":
                    return
            elif isinstance(task, _Start):
                await events.aclose()
                streams, answer = await start(task.requests), None
                events = merge([_each(stream) for stream in streams])
            else:
                answer = await (work(task) if callable(task) else anext(events))
    finally:
        tasks.close()
        for stream in streams:
            stream.close()
        await events.aclose()


async def _each(stream: EventStream) -> AsyncGenerator[Event, None]:
    async for event in stream:
        yield event


def run_requests(submit: Submit, requests: Sequence[Request]) -> list[Output]:
    """Run requests together and wait for all; after an error none of them runs on."""
    running = SideBySide(submit, requests)
    outputs: dict[int, Output] = {}
    try:
        for number, event in running:
            if event.output is not None:
                outputs[number] = event.output
    finally:
        running.close()
        running.wait()
    return [outputs[number] for number in range(len(requests))]


def run_plan(submit: Submit, plan: Plan[T]) -> T:
    """Run a plan and return its result."""
    check_fresh(plan, "run_plan")
    return PlanStream(submit, plan, frames=False).result()


def run_drafts(
    submit: Submit, frontend: Frontend, prompts: Sequence[Sequence[int]], params: SamplingParams,
    *, n: int, best_of: int | None, **fields: Any,
) -> list[Output]:  # fmt: skip
    """n drafts of each prompt, side by side; with `best_of` the best n of so many.

    Args:
        fields: of every request.

    Raises:
        InvalidRequest: n is below 1, or `best_of` below n.
    """
    requests = drafts(prompts, params, best_of or n, **fields)
    if best_of is None:
        return run_requests(submit, requests)
    return run_plan(submit, best(frontend.facts, requests, n, best_of))
