"""The runner of plans: its events are those of the requests, and fold to the plain result.

The model is the driver of the plans' other tests, whose requests give events here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from dgemma.compose.decide import decide
from dgemma.compose.drafts import best, best_of
from dgemma.compose.edit import Edited, edit
from dgemma.compose.fill import Filled, Hole, fill, infill
from dgemma.compose.plan import Plan, run
from dgemma.compose.questions import Predicate
from dgemma.compose.revise import repair, revise
from dgemma.compose.run import PlanEvent, PlanStream, begun, plan_events, run_plan, run_requests
from dgemma.errors import EngineError, InvalidRequest, Overloaded
from dgemma.events import EventStream
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Event, Output, Request
from tests.support.client import Written
from tests.support.plan_driver import Driver, facts_of

T = TypeVar("T")
STEPS = 2
PARTS: list[str | Hole] = ["Mira ", Hole(), " jumps over ", Hole(max_tokens=3), ".\n", Hole()]


class Engine:
    """Answers as a driver does, with a frame for each of two steps.

    Attributes:
        streams: of all requests.
        room: requests that may run at a time.
    """

    def __init__(self, driver: Driver, room: int = 1000) -> None:
        self.driver, self.room = driver, room
        self.streams: list[Counted] = []
        self.asked: list[Request] = []

    def submit(self, request: Request) -> EventStream:
        """As `LLM.submit`."""
        if sum(not one.closed and not one.over for one in self.streams) >= self.room:
            raise Overloaded("too many wait")
        output = self.driver.output(request, len(self.asked))
        self.asked.append(request)
        self.streams.append(Counted(list(events_of(request, output))))
        return self.streams[-1]

    async def start(self, requests: Sequence[Request]) -> list[EventStream]:
        """The same for several, in an event loop."""
        return [self.submit(request) for request in requests]


class Counted(Written):
    """Events that know when the last was taken, and end early when they are closed."""

    over = False

    def __next__(self) -> Event:
        event = super().__next__()
        if self.closed and event.output is None:
            event = self._seen(Event(type="done", output=Output(finish_reason="cancelled")))
        self.over = event.output is not None
        return event

    async def __anext__(self) -> Event:
        await asyncio.sleep(0)
        if self._output is not None:
            raise StopAsyncIteration
        return next(self)


def events_of(request: Request, output: Output) -> Iterator[Event]:
    """A request's events."""
    ids = output.token_ids
    if request.status:
        yield Event(type="status", state="queued")
    for step in range(STEPS if request.frames else 0):
        yield Event(type="frame", step=step, ids=ids, accepted=bytes(len(ids)))
    if output.finish_reason == "error":
        yield Event(type="done", output=output)
        return
    if ids and not (request.canvas and request.canvas.read_only):
        yield Event(type="commit", step=STEPS, ids=ids)
    yield Event(type="done", output=output)


async def work(task: Callable[[], Any]) -> Any:
    """Plain work, done at once."""
    return task()


def in_loop(engine: Engine, plan: Plan[T], **shown: bool) -> list[PlanEvent[T]]:
    """All events of a plan, from an event loop."""

    async def read() -> list[PlanEvent[T]]:
        return [e async for e in plan_events(plan, engine.start, work, **shown)]

    return asyncio.run(read())


def plans(facts: ModelFacts, draw: random.Random) -> Callable[[], Plan[Any]]:
    """A plan of one kind or the other, made anew at each call."""
    params = SamplingParams(seed=draw.getrandbits(64))
    if draw.random() < 0.4:
        text = "The old man walks to the river. He has a red boat."
        spans = [(4, 7), (12, 12), (24, draw.choice((30, len(text))))]
        return lambda: edit(facts, text, spans=spans, params=params)
    parts = [*PARTS, draw.choice(("", " the end", "  ")), Hole(max_tokens=draw.choice((2, 70)))]
    search = draw.random() < 0.8
    if not search:
        parts = [Hole(max_tokens=5) if isinstance(p, Hole) else p for p in parts]
    return lambda: fill(facts, parts, params, search=search)


def texts(result: Filled | Edited) -> list[str]:
    """The texts of a result's parts."""
    if isinstance(result, Filled):
        return [hole.text for hole in result.holes]
    return [change.new for change in result.changes]


def told(events: Sequence[PlanEvent[Any]], count: int) -> list[str]:
    """The same by the events."""
    return [
        "".join(e.text for e in events if e.type == "text" and e.part == n) for n in range(count)
    ]


def test_a_stream_folds_to_the_plain_result(wordy: Tokenizer) -> None:
    """Catches text that is told twice, early, or to another hole, other requests when streamed,
    and a loop's events that are not those of the face that waits."""
    for number in range(30):
        facts = facts_of(wordy, canvas=64 if number % 2 else 24)
        make = plans(facts, random.Random(number))
        driver = Driver(facts, seed=number)
        plain = driver.drive(make())
        engine = Engine(Driver(facts, seed=number))
        events = list(PlanStream(engine.submit, make()))
        assert events[-1].outcome == plain and [e.type for e in events].count("done") == 1
        assert [r.canvas for r in engine.asked] == [r.canvas for r in driver.asked]
        assert told(events, len(texts(plain))) == texts(plain)
        other = in_loop(Engine(Driver(facts, seed=number)), make(), frames=True)
        assert other == events
        quiet = Engine(Driver(facts, seed=number))
        assert run_plan(quiet.submit, make()) == plain
        assert not any(request.frames or request.status for request in quiet.asked)


def test_frames_are_tagged_with_their_holes(wordy: Tokenizer) -> None:
    """Catches two holes side by side that are mixed up, steps out of order, drafts of readings,
    and commits that are not the answer."""
    taken = 0
    for number in range(40):
        facts = facts_of(wordy, canvas=64)
        engine = Engine(Driver(facts, seed=number))
        stream = PlanStream(engine.submit, fill(facts, PARTS, SamplingParams(seed=number)))
        events = list(stream)
        frames = [e for e in events if e.type == "frame"]
        commits = [e for e in events if e.type == "commit"]
        assert frames and len(commits) == 1
        found = stream.result()
        for event in (*frames, *commits):
            control = engine.asked[event.request].canvas
            assert control is not None and not control.read_only and event.event is not None
            assert [place.part for place in event.places] == [0, 1, 2]
            loose = [at for place in event.places for at in range(place.start, place.stop)]
            assert set(loose) == set(range(len(control.ids))) - set(control.pinned)
        for place, hole in zip(commits[0].places, found.holes, strict=True):
            assert commits[0].event is not None
            assert commits[0].event.ids[place.start : place.stop] == hole.token_ids
            assert place.text(wordy, commits[0].event.ids).rstrip(" ") == hole.text.rstrip(" ")
        last = [e for e in frames if e.request == commits[0].request][-1]
        assert last.event is not None and commits[0].event is not None
        assert commits[0].event.ids == last.event.ids[: len(commits[0].event.ids)]
        first = frames[0].request
        assert [e.event.step for e in frames if e.request == first and e.event] == [0, 1]
        taken += commits[0].request != first
        assert {e.request for e in frames} == {first, commits[0].request}
    assert 0 < taken < 40  # both: the likeliest was taken, and another


def test_readings_are_shown_on_request(wordy: Tokenizer) -> None:
    """Catches drafts of readings that nobody asked for, and an option that does nothing."""
    facts = facts_of(wordy)
    question = [Predicate("food", "Is it about food?")]
    for search in (False, True):
        engine = Engine(Driver(facts))
        events = list(PlanStream(engine.submit, decide(facts, "Soup.", question), search=search))
        assert [e.type for e in events if e.places] == []
        assert len([e for e in events if e.type == "frame"]) == search * STEPS
        assert events[-1].outcome.answers[0].name == "food"


def test_text_is_told_before_later_canvases(wordy: Tokenizer) -> None:
    """Catches a finished hole whose text waits for the end of the whole plan."""
    facts = facts_of(wordy, canvas=24)
    words = " the then there jumps" * 8
    parts: list[str | Hole] = ["Mira", Hole(max_tokens=2), words, Hole(max_tokens=90), words]
    engine = Engine(Driver(facts))
    asked, plan = [], fill(facts, parts, SamplingParams(seed=1), search=False)
    for event in PlanStream(engine.submit, plan):
        if event.type == "text":
            asked.append((event.part, len(engine.asked)))
    assert asked[0][0] == 0 and asked[-1][0] == 1
    assert asked[0][1] < asked[-1][1] == len(engine.asked)
    assert len({count for part, count in asked if part == 1}) > 1  # canvas by canvas


def test_an_error_or_an_early_end_leaves_nothing_running(wordy: Tokenizer) -> None:
    """Catches requests that run on for nobody, and an error that looks like an end."""
    facts = facts_of(wordy, canvas=64)

    def plan() -> Plan[Filled]:
        return fill(facts, PARTS, SamplingParams(seed=1))

    total = len(list(PlanStream(Engine(Driver(facts)).submit, plan())))
    for stop in range(total):
        engine = Engine(Driver(facts))
        stream = PlanStream(engine.submit, plan())
        for _ in range(stop):
            next(stream)
        stream.close()
        assert list(stream) == [] and all(one.closed or one.over for one in engine.streams)
        with pytest.raises(EngineError, match="closed before its end"):
            stream.result()

        async def leave(engine: Engine, stop: int) -> None:
            events = plan_events(plan(), engine.start, work, frames=True)
            for _ in range(stop):
                await anext(events)
            await events.aclose()

        engine = Engine(Driver(facts))
        asyncio.run(leave(engine, stop))
        assert all(one.closed or one.over for one in engine.streams)
    failing = Engine(Driver(facts, fail=len(engine.asked) - 1))
    with pytest.raises(EngineError, match="not finite"):
        PlanStream(failing.submit, plan()).result()
    assert all(one.over for one in failing.streams)
    with pytest.raises(EngineError, match="not finite"):
        in_loop(Engine(Driver(facts, fail=len(engine.asked) - 1)), plan(), frames=True)


def test_a_plan_that_is_closed_while_it_asks(wordy: Tokenizer) -> None:
    """Catches a request that is started after its plan was closed by another thread."""
    facts = facts_of(wordy)
    engine = Engine(Driver(facts))

    def submit(request: Request) -> EventStream:
        started = engine.submit(request)
        if len(engine.asked) == 2:
            stream.close()
        return started

    stream = PlanStream(submit, fill(facts, PARTS, SamplingParams(seed=1)))
    assert list(stream) == [] and len(engine.asked) == 2
    assert all(one.closed for one in engine.streams)


def test_requests_wait_for_room(wordy: Tokenizer) -> None:
    """Catches a plan that gives up where its own requests take all the room, or asks too soon."""
    facts = facts_of(wordy)
    requests = [Request(token_ids=(2, 300), params=SamplingParams(seed=n)) for n in range(7)]
    together = run_requests(Engine(Driver(facts)).submit, requests)
    assert run_requests(Engine(Driver(facts), room=2).submit, requests) == together
    with pytest.raises(Overloaded):
        run_requests(Engine(Driver(facts), room=0).submit, requests)


def test_a_refusal_comes_at_once(wordy: Tokenizer) -> None:
    """Catches a plan whose faults show only when its events are read, or that begins twice."""
    facts = facts_of(wordy)
    with pytest.raises(InvalidRequest, match="nothing to fill"):
        begun(fill(facts, ["no hole"]))
    driver, plain = Driver(facts), Driver(facts)
    asked = fill(facts, PARTS, SamplingParams(seed=1))
    assert driver.drive(begun(fill(facts, PARTS, SamplingParams(seed=1)))) == plain.drive(asked)
    assert driver.rounds == plain.rounds and driver.settled == plain.settled

    def nothing() -> Plan[int]:
        yield from run([])
        return 3

    assert driver.drive(begun(nothing())) == 3


def test_what_is_no_plan_is_refused(wordy: Tokenizer) -> None:
    """Catches a TypeError of a generator's, or an AttributeError, where a remedy would do."""
    facts = facts_of(wordy)
    submit = Engine(Driver(facts)).submit
    for wrong in ("x", None, facts, fill):
        for call, name in ((begun, "stream_plan"), (partial(run_plan, submit), "run_plan")):
            with pytest.raises(InvalidRequest, match=rf"{name} takes a plan, such as infill\("):
                call(wrong)  # type: ignore[arg-type]
    used = fill(facts, PARTS, SamplingParams(seed=1))
    run_plan(submit, used)
    half = fill(facts, PARTS, SamplingParams(seed=1))
    next(half)
    for plan in (used, half):
        for call in (begun, partial(run_plan, submit)):
            with pytest.raises(InvalidRequest, match="this plan has run; make a new one"):
                call(plan)


@pytest.mark.parametrize("make", [
    lambda given: infill(given, "a", "b"), lambda given: fill(given, PARTS),
    lambda given: edit(given, "a", "b"), lambda given: revise(given, Output()),
    lambda given: repair(given, "a", SamplingParams(regex="a")),
    lambda given: decide(given, "a", [Predicate("food", "Is it?")]),
    lambda given: best_of(given, []), lambda given: best(given, [], 1, 1),
])  # fmt: skip
def test_a_model_in_place_of_its_facts(wordy: Tokenizer, make: Callable[[Any], Plan[Any]]) -> None:
    """Catches an AttributeError about the inside of a model."""
    model = SimpleNamespace(facts=facts_of(wordy))
    for given, said in ((model, "the model"), ("a", "a value of type str")):
        with pytest.raises(InvalidRequest, match=f"give llm.facts, not {said}"):
            begun(make(given))
