"""Text told before its canvas is finished: certain, once, and the same whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from dgemma.diffusion.canvas import Generation
from dgemma.engine.engine import Engine
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from dgemma.tasks import make_example
from dgemma.types import CanvasControl, Event, Output, Request
from tests.support.engines import EndingFrontend, assert_same, run
from tests.support.nano import by_reference, nano, nano_engine, random_request

pytestmark = pytest.mark.model


def asked(number: int, task: str = "json", **params: Any) -> Request:
    """A task's prompt, told as it settles."""
    example = make_example(task, "heldout", 1, number)
    ids = nano().chat_ids(example.messages, list(example.tools) or None, False)
    own = SamplingParams(**{"seed": number, "stable_prefix": True, "max_steps": 12} | params)
    return Request(token_ids=tuple(ids), params=own, frames=True, trace=True, index=number)


@pytest.fixture(scope="module")
def cases(count: Callable[[int, int], int]) -> list[tuple[Request, Generation]]:
    """Requests whose answers come in several canvases and parts, and what the reference makes."""
    engine = nano_engine()
    made = [asked(n, ("json", "sudoku")[n % 2], canvas_length=(None, 16, 40)[n % 3])
            for n in range(count(4, 6))]  # fmt: skip
    for number in range(count(4, 6)):
        other = random_request(number)
        loose = replace(other.params, stable_prefix=True, confidence_threshold=0.3)
        made.append(replace(other, params=loose, frames=True, trace=True))
    return [(request, by_reference(engine, request)) for request in made]


@cache
def early() -> Request:
    """A request of which something is told before its first canvas is finished."""
    for number in range(20):
        request = asked(number, "sudoku", canvas_length=32)
        events, _ = run(nano_engine().submit(request))
        if not next(event for event in events if event.type == "commit").whole:
            return request
    raise AssertionError("nothing of 20 answers is told early")


def check(events: list[Event], output: Output) -> int:
    """What every stream must hold; returns how often text came before its canvas was finished."""
    commits = [event for event in events if event.type == "commit"]
    assert tuple(i for event in commits for i in event.ids) == output.token_ids
    assert sum(event.whole for event in commits) == output.usage.canvases
    emitted: list[int] = []
    for event in events:
        if event.type == "frame":
            assert event.ids[: len(emitted)] == tuple(emitted), "told, and then changed"
            assert set(event.accepted[: len(emitted)]) <= {2}
        elif event.type == "commit":
            assert event.ids or event.whole
            emitted = [] if event.whole else emitted + list(event.ids)
    return sum(not event.whole for event in commits)


def test_the_engine_does_what_the_reference_does(cases: list[tuple[Request, Generation]]) -> None:
    """Pins that the two loops set at different steps, in the engine's commits or in its trace."""
    engine, parts = nano_engine(), 0
    for request, made in cases:
        events, output = run(engine.submit(request))
        assert_same(output, made)
        assert output.trace == made.trace
        parts += check(events, output)
    assert parts >= 5, "the cases show nothing"
    assert max(len(made.canvases) for _, made in cases) >= 3


def test_in_a_batch_with_others(cases: list[tuple[Request, Generation]]) -> None:
    """A pin that lands on a neighbour's canvas, or a neighbour without pins that pays for them."""
    engine = nano_engine()
    plain = [replace(r, params=replace(r.params, stable_prefix=None)) for r, _ in cases[:3]]
    alone = [run(nano_engine().submit(request))[1] for request in plain]
    streams = [engine.submit(request) for request, _ in cases]
    beside = [engine.submit(request) for request in plain]
    for stream, (_, made) in zip(streams, cases, strict=True):
        events, output = run(stream)
        assert_same(output, made)
        check(events, output)
    assert [run(stream)[1] for stream in beside] == alone


def test_set_back_in_mid_canvas(cases: list[tuple[Request, Generation]]) -> None:
    """After a preemption told text is told again, or the pins are gone and it changes."""
    engine = Engine(nano().model, end_ids=nano().engine.spec.end_ids, max_running=1)
    request, made = cases[1]
    for steps in (3, 4):
        before = engine.counters().preemptions
        stream = engine.submit(replace(request, priority=-1))
        for _ in range(steps):
            engine.step()
        run(engine.submit(asked(9, max_steps=2)))
        assert engine.counters().preemptions == before + 1
        events, output = run(stream)
        assert_same(output, made)
        assert output.trace == made.trace
        assert check(events, output) >= 1


@pytest.mark.parametrize("most", [1, 7, 20, 34])
def test_max_tokens(most: int) -> None:
    """Told beyond the limit, cut elsewhere than without, or "stop" where it was cut."""
    engine = nano_engine()
    request = asked(0, max_tokens=most, canvas_length=40)
    events, output = run(engine.submit(request))
    assert_same(output, by_reference(engine, request))
    check(events, output)
    assert len(output.token_ids) <= most


def test_what_is_enough_ends_the_request_at_once() -> None:
    """Steps made for text that a stop string has cut off already."""
    engine, request = nano_engine(), early()
    _, whole = run(engine.submit(request))
    seen: list[tuple[int, ...]] = []
    engine.frontend = EndingFrontend(lambda ids: not seen.append(ids))
    events, output = run(engine.submit(request))
    assert output.finish_reason == "stop" and output.token_ids == seen[0] and len(seen) == 1
    assert output.token_ids == whole.token_ids[: len(seen[0])]
    assert output.usage.steps < whole.usage.steps and output.usage.canvases == 1
    assert [event.whole for event in events if event.type == "commit"] == [False]


def test_a_cancelled_answer_holds_what_was_told() -> None:
    """A client that has read text which the output then lacks."""
    stream = nano_engine().submit(early())
    emitted = next(event for event in stream if event.type == "commit")
    stream.close()
    _, output = run(stream)
    assert output.finish_reason == "cancelled" and output.token_ids == emitted.ids
    assert not emitted.whole and emitted.ids


def test_a_score_for_every_token() -> None:
    """Scores of other positions than the tokens', or other values in events than in the output."""
    engine = nano_engine()
    for most in (None, 11):
        request = asked(1, "sudoku", logprobs=2, canvas_length=40, max_tokens=most)
        events, output = run(engine.submit(request))
        assert check(events, output) >= 1
        assert [score.token_id for score in output.scores] == list(output.token_ids)
        emitted = [score for event in events for score in event.scores]
        assert tuple(emitted) == output.scores
        assert all(score.logprob <= 0 and len(score.top) == 2 for score in emitted)
        early = [score for event in events if not event.whole for score in event.scores]
        assert early and all(score.top[0][0] == score.token_id for score in early)


def test_a_thought_past_its_budget() -> None:
    """The end of a thought put in the middle of a canvas, or told as a part of one."""
    thought = ThoughtIds(open_id=100, close_id=101, is_open=True)
    engine = nano_engine(endless=True)
    request = asked(0, thinking_budget=3, canvas_length=40, max_tokens=100, logprob_token_ids=[7])
    request = replace(request, thought=thought)
    events, output = run(engine.submit(request))
    assert_same(output, by_reference(engine, request))
    assert output.token_ids[40] == 101 and len(output.scores) == len(output.token_ids)
    spoken = [i for event in events if event.type == "commit" for i in event.ids]
    assert tuple(spoken) == output.token_ids


def test_what_it_cannot_be_combined_with() -> None:
    """A promise that a constraint would break, or a field that is accepted and ignored."""
    engine = nano_engine()
    with pytest.raises(InvalidRequest, match="an engine without a frontend"):
        engine.prepare(asked(0, stop=["x"]))
    engine.frontend = nano().frontend
    with pytest.raises(InvalidRequest, match="stable_prefix and bad_words"):
        engine.prepare(asked(0, bad_words=["x"]))
    with pytest.raises(InvalidRequest, match="stable_prefix and read_only"):
        engine.prepare(replace(asked(0), canvas=CanvasControl(read_only=True)))
    with pytest.raises(InvalidRequest, match="stable_prefix"):
        autoregressive = Request(token_ids=(2,), params=SamplingParams(stable_prefix=True))
        engine.prepare(replace(autoregressive, mode="autoregressive"))
    assert engine.running == 0


def test_status_until_the_first_step() -> None:
    """A waiting client told nothing, or told of every canvas's encoding for ever."""
    engine = nano_engine(chunk=16)
    request = replace(asked(0, "sudoku", canvas_length=40), status=True)
    events, output = run(engine.submit(request))
    said = [(event.state, event.step) for event in events if event.type == "status"]
    passes = -(-output.usage.prompt_tokens // 16)
    assert said == [("queued", 0), *(("encoding", 16 * k) for k in range(passes))]
    assert all(event.type == "status" for event in events[: len(said)])
