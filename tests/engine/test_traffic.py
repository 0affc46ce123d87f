"""Many requests at random times: same tokens as alone, each ends once, nothing is left behind."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from dgemma.bench.clock import status_bytes
from dgemma.diffusion.canvas import Generation
from dgemma.engine.engine import Engine
from dgemma.engine.worker import Worker
from dgemma.events import EventStream
from dgemma.params import SamplingParams
from dgemma.request_parts import PromptContent
from dgemma.types import PAGE, Output, Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import EndingFrontend, assert_same, run, tiny
from tests.support.engines import request as tiny_request
from tests.support.nano import by_reference, nano_engine, random_request

pytestmark = pytest.mark.model

SMALL = 3_000_000
"""Bytes of keys and values: about four of nano's longer requests, so some must step aside."""


@dataclass
class Case:
    """A request, what the reference makes of it, when it comes, and when it is cancelled."""

    request: Request
    made: Generation
    step: int
    leaves: int | None


def mixed(number: int, draw: random.Random) -> Request:
    """Of every kind: shared beginnings, forks, the twin, narrow canvases, other owners."""
    request = random_request(number, most_tokens=220)
    if draw.random() < 0.4:  # a conversation whose beginning others have, too
        shared = random.Random(draw.randrange(3))
        head = [shared.randrange(3, 900) for _ in range(shared.choice((PAGE, 200, 400)))]
        tail = [draw.randrange(3, 900) for _ in range(draw.randrange(1, 100))]
        request = replace(request, token_ids=(*head, *tail))
    if draw.random() < 0.15:
        params = SamplingParams(max_tokens=draw.randrange(1, 30))
        request = replace(request, mode="autoregressive", params=params, canvas=None)
    return replace(
        request,
        owner=draw.choice(("", "a", "b")),
        priority=draw.choice((0, 0, 0, 1, -1)),
        frames=draw.random() < 0.3,
    )


@pytest.fixture(scope="module")
def cases(count: Callable[[int, int], int]) -> list[Case]:
    """Requests, some of them forks: the same prompt at the same time with another seed."""
    draw, out, step = random.Random(5), list[Case](), 0
    engine, total, number = nano_engine(endless=True), count(20, 200), 0
    while len(out) < total:
        number += 1
        step += draw.choice((0, 0, 1, 3, 9))
        request = mixed(number, draw)
        forks = draw.choice((1, 1, 1, 3)) if request.mode == "diffusion" else 1
        for fork in range(forks):
            params = request.params
            if fork:
                params = replace(params, seed=((params.seed or 0) + fork) % 2**64)
            own = replace(request, params=params, index=len(out))
            leaves = step + draw.randrange(0, 25) if draw.random() < 0.12 else None
            out.append(Case(own, by_reference(engine, own), step, leaves))
    return out


def check(engine: Engine) -> None:
    """The scheduler's invariants, and those of rows beside it."""
    check_scheduler(engine.scheduler)
    assert len(engine.scheduler) == engine.running


def test_random_arrivals(cases: list[Case], record: Callable[..., None]) -> None:
    """Prefix reuse, setting back, cancels, forks: whatever happens beside it, the same tokens."""
    engine = nano_engine(endless=True, chunk=128, cache_bytes=SMALL, max_running=8, max_tokens=700)
    live: list[tuple[Case, EventStream]] = []
    left: set[int] = set()
    step, coming = 0, sorted(cases, key=lambda case: case.step)
    while coming or engine.running:
        while coming and coming[0].step <= step:
            case = coming.pop(0)
            live.append((case, engine.submit(case.request)))
        for number, (case, stream) in enumerate(live):
            if case.leaves == step:
                stream.close()
                left.add(number)
        engine.step()
        check(engine)
        step += 1
    same = 0
    for case, stream in live:
        _, output = run(stream)
        if output.finish_reason == "cancelled":
            assert case.leaves is not None
            assert output.token_ids == case.made.token_ids[: len(output.token_ids)]
        else:
            assert_same(output, case.made)
            same += 1
    counters = engine.counters()
    assert same >= len(cases) * 0.8
    assert counters.preemptions > 0 and counters.prefix_hit_tokens > 0
    assert counters.pages_full_used == 0 and counters.waiting == counters.running == 0
    record("requests under random traffic, tokens equal to the reference", same)
    record("of them set back for want of pages, times", counters.preemptions, "> 0")
    record("prompt tokens that were in the pages already", counters.prefix_hit_tokens, "> 0")


def test_random_lives_on_a_tiny_model(count: Callable[[int, int], int]) -> None:
    """The same on random weights, where every belief counts, with pages for two requests."""
    for seed in range(count(8, 300)):
        assert random_life(random.Random(seed)) > 0


def random_life(draw: random.Random) -> int:
    """One engine from its first request to its last; how many tokens were compared."""
    one = Engine(
        TINY, end_ids=(), chunk=draw.choice((64, 128)), max_running=draw.choice((2, 4)),
        max_tokens=draw.choice((80, 400)), cache_bytes=LEAST * draw.choice((1, 2)),
    )  # fmt: skip
    streams: list[tuple[Request, EventStream]] = []
    for _ in range(draw.randrange(30, 60)):
        if len(streams) < 6 and draw.random() < 0.4:
            prompt = [draw.choice((2, 5))] * draw.choice((1, 60, 64, 65, 130))
            made = tiny_request(draw.randrange(99), max_tokens=draw.choice((4, 8, 24, 70)))
            made = replace(made, token_ids=tuple(prompt), priority=draw.choice((0, 0, 1)))
            streams.append((made, one.submit(made)))
        elif streams and draw.random() < 0.05:
            draw.choice(streams)[1].close()
        one.step()
        check(one)
    compared = 0
    for request, stream in streams:
        _, output = run(stream)
        check(one)
        compared += len(output.token_ids)
        made = by_reference(one, request)
        if output.finish_reason == "cancelled":
            assert output.token_ids == made.token_ids[: len(output.token_ids)]
        else:
            assert_same(output, made)
            assert output.trace == made.trace
    assert one.counters().pages_full_used == 0
    return compared


TINY = tiny()
LEAST = 64 * 2 * 8 * 4 * 2 * 4
"""Pages for one context of the tiny model: 4 of 64 tokens in 2 layers, keys and values of 8."""


def test_preemption_resumes_the_canvas() -> None:
    """A request that was set back makes its steps again, or goes on with another belief."""
    one = Engine(TINY, end_ids=(), max_running=1)
    long = replace(tiny_request(3, max_tokens=16, max_steps=7), priority=-1)
    expected = by_reference(one, long)
    stream = one.submit(long)
    for _ in range(4):
        one.step()
    person = one.submit(tiny_request(9, max_tokens=8))
    assert run(person)[1].finish_reason == "length"
    assert one.counters().preemptions == 1
    _, output = run(stream)
    assert_same(output, expected)
    assert output.trace == expected.trace


@pytest.mark.fault("R H1")
def test_answers_that_give_way_to_other_owners(count: Callable[[int, int], int]) -> None:
    """An answer that gives way at every canvas goes on with another belief, or from the start."""
    one = Engine(TINY, end_ids=(), max_running=2, cache_bytes=2 * LEAST)
    made = [
        replace(tiny_request(seed, max_tokens=64), owner="abcde"[seed % 5], frames=False)
        for seed in range(count(10, 60))
    ]
    streams = [one.submit(request) for request in made]
    while one.running:
        one.step()
        check(one)
    canvases = 0
    for stream, request in zip(streams, made, strict=True):
        output, expected = stream.result(), by_reference(one, request)
        assert_same(output, expected)
        assert output.trace == expected.trace
        canvases += output.usage.canvases
    assert canvases / 2 < one.counters().preemptions <= canvases


def test_a_cached_prompt_is_not_encoded_again() -> None:
    """The counts that acceptance 6 stands on: what is encoded is what was not there."""
    engine = nano_engine()
    prompt = tuple(3 + k % 900 for k in range(10 * PAGE))
    params = SamplingParams(seed=1, max_tokens=4, max_steps=4)
    for tail, fresh in ((5, 10 * PAGE + 5), (7, 7), (2 * PAGE, 2 * PAGE)):
        before = engine.counters().encoded_tokens
        ids = (*prompt, *([tail] * tail))
        _, output = run(engine.submit(Request(token_ids=ids, params=params)))
        assert engine.counters().encoded_tokens - before == fresh
        assert_same(output, by_reference(engine, Request(token_ids=ids, params=params)))


def test_cached_prompts_of_others_are_encoded_again() -> None:
    """Two images share their placeholders, and the second is answered from the first one's keys."""
    engine = nano_engine()
    params = SamplingParams(seed=1, max_tokens=4, max_steps=4)
    ids = (*range(3, 3 + PAGE), *[5] * (4 * PAGE), *range(3, 51))
    cat = PromptContent(start=PAGE, length=4 * PAGE, key="cat 280")
    dog = replace(cat, key="dog 280")
    asked = Request(token_ids=ids, params=params, owner="a", contents=(cat,))
    for request, fresh in (
        (asked, len(ids)),
        (asked, 48),
        (replace(asked, contents=(dog,)), len(ids) - PAGE),
        (replace(asked, contents=()), len(ids) - PAGE),
        (replace(asked, owner="b"), len(ids)),
        (replace(asked, owner="b"), 48),
    ):
        before = engine.counters().encoded_tokens
        _, output = run(engine.submit(request))
        assert engine.counters().encoded_tokens - before == fresh
        assert_same(output, by_reference(engine, request))


@pytest.mark.fault("R H2")
@pytest.mark.parametrize("share", [False, True])
def test_what_owners_share(share: bool) -> None:
    """An owner's prompt is answered from the keys of another, or the template's never are."""
    engine = nano_engine(share_prefix_cache=share)
    frontend = engine.frontend = EndingFrontend(lambda ids: False)
    frontend.common = lambda request: 2 * PAGE + 5  # type: ignore[method-assign]
    params = SamplingParams(seed=1, max_tokens=4, max_steps=4)
    asked = Request(token_ids=tuple(range(3, 3 + 5 * PAGE + 9)), params=params, owner="a")
    length = len(asked.token_ids)
    for owner, hits in (("a", 0), ("b", 5 * PAGE if share else 2 * PAGE), ("b", 5 * PAGE)):
        before = engine.counters()
        request = replace(asked, owner=owner)
        assert_same(run(engine.submit(request))[1], by_reference(engine, request))
        after = engine.counters()
        assert after.prefix_hit_tokens - before.prefix_hit_tokens == hits
        assert after.encoded_tokens - before.encoded_tokens == length - hits


def test_the_next_turn_of_a_chat(record: Callable[..., None]) -> None:
    """A conversation's answer is encoded once more at every turn."""
    engine = nano_engine(endless=True)
    params = SamplingParams(seed=1, max_tokens=3 * 96, max_steps=4)
    first = Request(token_ids=tuple(range(3, 103)), params=params)
    _, output = run(engine.submit(first))
    before = engine.counters().encoded_tokens
    second = replace(first, token_ids=(*first.token_ids, *output.token_ids, 5, 6, 7))
    _, again = run(engine.submit(second))
    assert_same(again, by_reference(engine, second))
    # All but the last canvas, which was never encoded, and what is behind the last whole page.
    assert engine.counters().encoded_tokens - before <= 96 + PAGE + 3 + 2 * 96


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_soak(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """Random traffic with cancels: memory that grows, threads, pages or slots that stay."""
    seconds = count(15, 600)
    worker = Worker(nano_engine(chunk=128, cache_bytes=SMALL, max_running=8))
    draw = random.Random(11)
    began, warm, peak = time.monotonic(), 0, 0
    threads = set(threading.enumerate())  # of other tests, some of which end meanwhile
    done: dict[str, int] = {}
    live: list[EventStream] = []
    requests = [mixed(number, draw) for number in range(60)]

    def read(stream: EventStream) -> None:
        output = [event.output for event in stream][-1]
        assert isinstance(output, Output)
        done[output.finish_reason] = done.get(output.finish_reason, 0) + 1

    while time.monotonic() < began + seconds:
        made = replace(draw.choice(requests), replaces=draw.choice(("", "", "", "editor")))
        live.append(worker.submit(made))
        if draw.random() < 0.2:
            draw.choice(live).close()
        if len(live) > 12:
            read(live.pop(0))
        resident = status_bytes("RssAnon") or 0
        if time.monotonic() < began + seconds * 0.3:
            warm = max(warm, resident)
        peak = max(peak, resident)
    for stream in live:
        read(stream)
    worker.close()
    counters = worker.engine.counters()
    assert set(done) <= {"stop", "length", "cancelled"} and sum(done.values()) > 0
    assert set(threading.enumerate()) <= threads
    assert counters.running == counters.waiting == counters.pages_full_used == 0
    assert not worker.engine.scheduler._replaceable and not len(worker.engine.scheduler.owners)
    assert peak <= warm * 1.05
    record("seconds of random traffic", seconds)
    record("requests ended", sum(done.values()))
    record("largest resident memory over that of the first third", peak / warm, "<= 1.05")
