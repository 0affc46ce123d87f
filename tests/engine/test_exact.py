"""The exact mode in the engine: the answer of decoding token by token, in fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dgemma.engine.engine import Engine
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.tasks import TASKS, make_example
from dgemma.types import Event, Output, Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import engine as random_engine
from tests.support.engines import last, run, run_preempted
from tests.support.engines import request as tiny_request
from tests.support.nano import by_reference, nano, nano_engine

pytestmark = pytest.mark.model


def asked(task: str, number: int, most: int = 110) -> Request:
    """A held-out example of a task, token by token."""
    example = make_example(task, "heldout", 77, number)
    ids = nano().chat_ids(
        list(example.messages), list(example.tools) or None, example.thinking is not None
    )
    return Request(token_ids=tuple(ids), mode="autoregressive",
                   params=SamplingParams(max_tokens=most))  # fmt: skip


def exact(request: Request, **params: object) -> Request:
    """The same in the exact mode."""
    return replace(request, mode="exact", params=replace(request.params, **params))  # type: ignore[arg-type]


def same_answer(output: Output, plain: Output) -> None:
    """All but the number of passes."""
    steps = plain.usage.steps
    assert replace(output, usage=replace(output.usage, steps=steps)) == plain


@pytest.fixture(scope="module")
def cases(count: Callable[[int, int], int]) -> list[tuple[Request, Output]]:
    """Requests of all tasks, and their answers token by token."""
    engine = nano_engine()
    requests = [asked(task, n) for n in range(count(3, 1000 // len(TASKS) + 1)) for task in TASKS]
    streams = [engine.submit(request) for request in requests]
    return [(one, last(stream)) for one, stream in zip(requests, streams, strict=True)]


@pytest.fixture(scope="module")
def alone(cases: list[tuple[Request, Output]]) -> list[tuple[list[Event], Output]]:
    """The events and the output of each of them in the exact mode, with nothing beside it."""
    engine = nano_engine()
    return [run(engine.submit(exact(request))) for request, _ in cases]


def test_alone(
    cases: list[tuple[Request, Output]], alone: list[tuple[list[Event], Output]],
    record: Callable[..., None],
) -> None:  # fmt: skip
    """A drafted token that the encoder would not have chosen, or one that is lost at a border."""
    for (_, plain), (_, output) in zip(cases, alone, strict=True):
        same_answer(output, plain)
    record("exact mode: answers equal to decoding token by token", len(cases))


def test_in_a_batch(cases: list[tuple[Request, Output]]) -> None:
    """Rows that draft, read and write single tokens side by side take each other's numbers."""
    engine = nano_engine()
    for low in range(0, len(cases), 16):
        part = cases[low : low + 16]
        streams = [engine.submit(exact(request)) for request, _ in part]
        beside = engine.submit(Request(token_ids=(5, 6, 7), params=SamplingParams(seed=1)))
        for stream, (_, plain) in zip(streams, part, strict=True):
            same_answer(last(stream), plain)
        last(beside)
    check_scheduler(engine.scheduler)


def test_random_weights(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """Drafts that are never right, context to the last position, an answer of no canvas."""
    engine = random_engine()
    total = count(12, 200)
    for seed in range(total):
        prompt = tuple((seed * 7 + k * k) % 50 for k in range(1 + seed * 11 % 240))
        plain = Request(token_ids=prompt, mode="autoregressive",
                        params=SamplingParams(max_tokens=1 + seed % 90))  # fmt: skip
        same_answer(last(engine.submit(replace(plain, mode="exact"))), last(engine.submit(plain)))
    record("exact mode on random weights: answers equal to decoding token by token", total)


def test_fewer_passes(
    cases: list[tuple[Request, Output]], alone: list[tuple[list[Event], Output]],
    record: Callable[..., None],
) -> None:  # fmt: skip
    """Drafts that are not accepted, or made where they never are."""
    sums: dict[str, list[int]] = {}
    for (_, plain), (_, made), task in zip(cases, alone, list(TASKS) * len(cases), strict=False):
        total = sums.setdefault(task, [0, 0])
        total[0] += made.usage.steps
        total[1] += plain.usage.steps
    shares = {task: drafted / plain for task, (drafted, plain) in sums.items()}
    record("exact mode: passes of JSON, share of decoding token by token", shares["json"], "<= 0.2")
    record("exact mode: passes of Sudoku, share", shares["sudoku"], "<= 1.1")
    assert shares["json"] <= 0.25 and max(shares.values()) <= 1.15


def test_commits_add_up_to_the_passes(alone: list[tuple[list[Event], Output]]) -> None:
    """A pass that gives a token and the first step of a draft is in the commits of both."""
    for events, output in alone:
        commits = [event for event in events if event.type == "commit"]
        assert sum(event.step for event in commits) == output.usage.steps


def test_preempted(cases: list[tuple[Request, Output]], count: Callable[[int, int], int]) -> None:
    """A draft or a reading that loses its pages: a token twice, or one of the draft is kept."""
    for request, plain in cases[: count(1, 2) * len(TASKS)]:
        for every in (2, 3):
            events, output = run_preempted(
                nano_engine(), exact(request), lambda number, _, n=every: number % n == n - 1
            )
            same_answer(output, plain)
            assert sum((event.ids for event in events if event.type == "commit"), ()) == (
                output.token_ids
            )


def test_a_temperature_draws_the_same_tokens_whatever_is_drafted(
    count: Callable[[int, int], int],
) -> None:
    """A draw that depends on the draft, on the batch, or on how far the last reading went."""
    engine, tasks = nano_engine(), list(TASKS)[:: count(2, 1)]
    requests = [exact(asked(task, 9), temperature=1.3, seed=s) for task in tasks for s in (1, 2)]
    alone = [last(engine.submit(request)) for request in requests]
    streams = [engine.submit(request) for request in requests]
    assert [last(stream).token_ids for stream in streams] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in alone}) > len(tasks), "the seed draws"


def test_the_reference_loop_makes_the_same_passes(count: Callable[[int, int], int]) -> None:
    """The engine and the loop that is easy to read part ways."""
    engine = nano_engine()
    for task in list(TASKS)[:: count(2, 1)]:
        for params in ({}, {"temperature": 0.9, "seed": 4}):
            request = exact(asked(task, 4), **params)
            made, output = by_reference(engine, request), last(engine.submit(request))
            assert made.token_ids == output.token_ids
            assert made.steps == (output.usage.steps,)


def test_fields_without_a_meaning_are_refused() -> None:
    """A field that is ignored."""
    engine: Engine = nano_engine()
    for params in ({"max_steps": 3}, {"top_p": 0.5}, {"verdict": True}, {"race": 2}):
        with pytest.raises(InvalidRequest, match="exact mode"):
            engine.submit(tiny_request(mode="exact", **params))
