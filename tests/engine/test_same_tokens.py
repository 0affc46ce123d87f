"""The engine against the reference loop: same seed, same tokens, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dgemma.diffusion.canvas import Generation
from dgemma.engine.engine import Engine
from dgemma.params import SamplingParams
from dgemma.types import Request
from tests.support.engines import assert_same, last
from tests.support.engines import engine as random_engine
from tests.support.engines import request as tiny_request
from tests.support.nano import by_reference, nano, nano_engine, random_request

pytestmark = pytest.mark.model

GROUP = 8
"""Requests that run together."""

Case = tuple[Request, Generation]


@pytest.fixture(scope="module")
def cases(count: Callable[[int, int], int]) -> dict[bool, list[Case]]:
    """Random requests and what the reference makes of them; under True: without end ids."""
    total = count(18, 200)
    out: dict[bool, list[Case]] = {False: [], True: []}
    for number in range(total):
        endless = number % 3 == 0
        request = random_request(number)
        out[endless].append((request, by_reference(nano_engine(endless=endless), request)))
    return out


def groups(cases: list[Case]) -> list[list[Case]]:
    """Neighbours of the tests in a batch."""
    return [cases[low : low + GROUP] for low in range(0, len(cases), GROUP)]


def test_cases_are_worth_running(
    cases: dict[bool, list[Case]], record: Callable[..., None]
) -> None:
    """A comparison of answers that are all empty, or all one canvas long, would show nothing."""
    made = [generation for part in cases.values() for _, generation in part]
    record("random requests that are compared with the reference loop", len(made))
    assert {generation.finish_reason for generation in made} == {"stop", "length"}
    assert max(len(generation.canvases) for generation in made) >= 2
    assert any(t.reason == "converged" for generation in made for t in generation.trace)


@pytest.mark.parametrize("endless", [False, True])
def test_alone(endless: bool, cases: dict[bool, list[Case]]) -> None:
    """The engine's own bookkeeping (commit, cut, next canvas) departs from the reference."""
    engine = nano_engine(endless=endless)
    for request, made in cases[endless]:
        assert_same(last(engine.submit(request)), made)


@pytest.mark.parametrize("endless", [False, True])
def test_in_a_batch(endless: bool, cases: dict[bool, list[Case]]) -> None:
    """A row's bits depend on its neighbours: padded keys, shared sums, wrong splitting."""
    engine = nano_engine(endless=endless)
    for group in groups(cases[endless]):
        streams = [engine.submit(request) for request, _ in group]
        for stream, (_, made) in zip(streams, group, strict=True):
            assert_same(last(stream), made)
    assert engine.running == 0


@pytest.mark.parametrize("endless", [False, True])
def test_other_chunks_and_a_cancelled_neighbour(
    endless: bool, cases: dict[bool, list[Case]]
) -> None:
    """A prompt encoded in pieces, or a neighbour that leaves in mid-run, changes the tokens.

    The neighbours are cancelled while they encode and while they denoise.
    """
    for number, group in enumerate(groups(cases[endless])):
        engine = nano_engine(endless=endless, chunk=(13, 64, 100)[number % 3])
        neighbours = [
            engine.submit(random_request(10_000 + 2 * number + k, most_tokens=90)) for k in (0, 1)
        ]
        streams = [engine.submit(request) for request, _ in group]
        for step in range(9):
            engine.step()
            if step in (1, 8):
                neighbours[step == 8].close()
        for stream, (_, made) in zip(streams, group, strict=True):
            assert_same(last(stream), made)
        assert all(last(stream).finish_reason != "error" for stream in neighbours)


def test_joining_late(cases: dict[bool, list[Case]]) -> None:
    """A request that comes while others denoise shares a forward of both modes with them."""
    engine = nano_engine(endless=True)
    streams = []
    for request, _ in cases[True][:4]:
        streams.append(engine.submit(request))
        engine.step()
        engine.step()
    for stream, (_, made) in zip(streams, cases[True][:4], strict=True):
        assert_same(last(stream), made)


def test_every_step_on_random_weights() -> None:
    """Trap 2: nano is so sure of what follows an answer that a belief carried over shows nothing.

    Also a canvas counted wrongly, or noise of another one, where a text would be the same.
    """
    engine = random_engine()
    requests = [tiny_request(seed, max_tokens=8 * seed, max_steps=5) for seed in (2, 3, 5)]
    streams = [engine.submit(request) for request in requests]
    for stream, request in zip(streams, requests, strict=True):
        output, made = last(stream), by_reference(engine, request)
        assert_same(output, made)
        assert output.trace == made.trace and len(made.canvases) == request.params.seed


def test_bf16_rate(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """In bf16 a batch rounds otherwise than a row alone; how often that turns a token is reported.

    All tokens different would be a fault, not rounding.
    """
    llm = nano("bfloat16")
    requests = [
        replace(r, params=r.params.merged(SamplingParams()), index=k)
        for k in range(count(6, 60))
        for r in [random_request(500 + k, most_tokens=90)]
    ]
    alone = Engine(llm.model, end_ids=(), defaults=llm.defaults)
    single = [last(alone.submit(request)).token_ids for request in requests]
    streams = [alone.submit(request) for request in requests]
    together = [last(stream).token_ids for stream in streams]
    pairs = [pair for a, b in zip(single, together, strict=True) for pair in zip(a, b, strict=True)]
    rate = sum(a != b for a, b in pairs) / len(pairs)
    record("bf16: tokens that differ between alone and in a batch", rate, "< 1")
    assert rate < 1
