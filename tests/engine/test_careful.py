"""`quality="careful"`: a canvas that the encoder finds unlikely is restarted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.engine.engine import Engine
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.tasks import make_example
from dgemma.types import Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import last, run_preempted
from tests.support.nano import nano, nano_engine, random_request

pytestmark = pytest.mark.model

ALWAYS, NEVER = 1.0, -1e9
"""Bounds that every canvas falls below, and none."""


def careful_engine(bound: float, *, endless: bool = False) -> Engine:
    """An engine whose calibration has this bound."""
    engine = nano_engine(endless=endless)
    engine.limits.learnt.take(None, bound)
    return engine


def asked(number: int, **params: object) -> Request:
    """A Sudoku of few givens, whose tries differ."""
    example = make_example("sudoku-harder", "heldout", 11, number)
    ids = nano().chat_ids(list(example.messages))
    drawn = SamplingParams(seed=number, max_tokens=96, max_steps=16, quality="careful", **params)  # type: ignore[arg-type]
    return Request(token_ids=tuple(ids), params=drawn)


def plain(request: Request) -> Request:
    """The same without care, but with a verdict."""
    return replace(request, params=replace(request.params, quality=None, verdict=True))


def test_a_likely_canvas_is_kept(count: Callable[[int, int], int]) -> None:
    """Care that changes an answer that nobody doubts, or costs steps."""
    engine = careful_engine(NEVER)
    other = replace(random_request(1), params=asked(1).params)
    for request in (asked(1), other, asked(2))[: count(2, 3)]:
        assert last(engine.submit(request)) == last(engine.submit(plain(request)))


def test_the_likeliest_of_all_tries_is_committed(count: Callable[[int, int], int]) -> None:
    """The last try, whatever it is like; or a report of another one than that committed."""
    engine, others = careful_engine(ALWAYS), 0
    for number in range(count(2, 3)):
        request, restarts = asked(number, tries=3), engine.counters().restarts
        output = last(engine.submit(request))
        assert output.verdict is not None and output.verdict.below == 1
        first = last(engine.submit(plain(request)))
        assert first.verdict is not None
        assert output.verdict.mean >= first.verdict.mean
        assert output.usage.steps - output.usage.discarded_steps == output.verdict.steps
        assert output.usage.discarded_steps > 0
        assert engine.counters().restarts > restarts
        others += output.token_ids != first.token_ids
    check_scheduler(engine.scheduler)
    assert others > 0


def test_equal_tries_end_it() -> None:
    """Eight tries of a canvas that says the same each time."""
    engine = careful_engine(ALWAYS)
    example = make_example("json", "heldout", 11, 3)
    ids = tuple(nano().chat_ids(list(example.messages)))
    params = SamplingParams(seed=1, quality="careful", tries=8)
    output = last(engine.submit(Request(token_ids=ids, params=params)))
    once = last(engine.submit(Request(token_ids=ids, params=replace(params, quality=None))))
    assert output.token_ids == once.token_ids
    assert output.usage.steps <= 3 * once.usage.steps


def test_a_grammar_is_walked_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matcher that stays after a canvas that was not kept: the next one is broken JSON."""
    backs: list[int] = []
    take_back = ConstrainedAnswer.take_back
    monkeypatch.setattr(
        ConstrainedAnswer, "take_back",
        lambda self, count: backs.append(count) or take_back(self, count),
    )  # fmt: skip
    llm = nano()
    engine, frontend = careful_engine(ALWAYS), llm.engine.frontend
    engine.frontend = frontend
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"],
              "additionalProperties": False}  # fmt: skip
    ids = tuple(llm.chat_ids([{"role": "user", "content": "JSON: Mira Kovar is 31 years old."}]))
    for seed in range(4):
        params = SamplingParams(seed=seed, quality="careful", tries=3, json_schema=schema)
        output = last(engine.submit(Request(token_ids=ids, params=params, chat=True)))
        assert output.constraint is not None and output.constraint.complete
        assert output.finish_reason == "stop" and output.text.startswith("{")
    assert len(backs) >= 8 and all(backs)


def test_several_canvases_alone_in_a_batch_and_preempted(count: Callable[[int, int], int]) -> None:
    """A try that takes the keys of another one, or that a neighbour changes."""
    requests = [
        replace(r, params=replace(r.params, quality="careful", tries=2, max_tokens=150, stop=None,
                                  stable_prefix=None))
        for r in map(random_request, (3, 6, 9)[: count(2, 3)])
    ]  # fmt: skip
    engine = careful_engine(ALWAYS, endless=True)
    alone = [last(engine.submit(request)) for request in requests]
    streams = [engine.submit(request) for request in requests]
    assert [last(stream) for stream in streams] == alone
    for request, expected in zip(requests, alone, strict=True):
        _, output = run_preempted(engine, request, lambda number, _: number % 3 == 2)
        assert output == expected


def test_without_a_calibration_it_is_refused() -> None:
    """A word that does nothing."""
    with pytest.raises(InvalidRequest, match="dgemma calibrate"):
        nano_engine().submit(asked(1))
