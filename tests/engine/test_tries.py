"""Restarts and races in the engine: the tokens of the reference loop, and pages for every row."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.diffusion.canvas import Generation
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.engine.engine import Engine
from dgemma.engine.plan import Scheduled
from dgemma.errors import InvalidRequest
from dgemma.events import EventStream
from dgemma.params import SamplingParams
from dgemma.tasks import make_example
from dgemma.types import PAGE, CanvasControl, Event, Output, Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import assert_same, engine, last, request, run, run_preempted, tiny
from tests.support.nano import by_reference, nano, nano_engine, random_request

LOOSE = {"confidence_threshold": 2.4, "stability_threshold": 0}
"""Random weights are never sure: with these about one canvas in three converges in time."""

SETTINGS: list[dict[str, Any]] = [
    {"restart_after": 2, "max_steps": 5, "tries": 3} | LOOSE,
    {"race": 3, "max_steps": 4} | LOOSE,
    {"race": 2, "restart_after": 2, "tries": 2, "max_steps": 7} | LOOSE,
    {"restart_after": 1, "tries": 9, "max_steps": 3},
    {"race": 4, "max_steps": 2},
]

TINY = tiny()
MEMORY = 64 * 2 * 8 * 4 * 2 * 12
"""Twelve pages of both kinds of its layers."""


def asked(number: int, size: int | None = None, **params: Any) -> Request:
    """A request of a tiny model; its prompt ends in any place of a page."""
    made = request(number, **(SETTINGS[number % len(SETTINGS)] | params))
    size = (3, 56, 57, 60, 63, 64, 65, 120)[number % 8] if size is None else size
    return replace(made, token_ids=(2, 5) * (size // 2) + (7,) * (size % 2))


def compare(output: Output, made: Generation) -> None:
    """All that both loops report."""
    assert_same(output, made)
    assert output.trace == made.trace


def test_the_reference_alone_and_in_a_batch(count: Callable[[int, int], int]) -> None:
    """Rows that read each other's keys, draw each other's noise, or are counted one by one."""
    one, kinds = engine(), set[tuple[bool, bool]]()
    total = count(20, 400)
    cases = [(made, by_reference(one, made)) for made in map(asked, range(total))]
    for made, expected in cases[:16]:
        compare(last(one.submit(made)), expected)
    for low in range(0, total, 16):
        streams = [one.submit(made) for made, _ in cases[low : low + 16]]
        for stream, (_, expected) in zip(streams, cases[low:], strict=False):
            compare(last(stream), expected)
        check_scheduler(one.scheduler)
    for _, expected in cases:
        kinds |= {(step.reason == "converged", step.attempt > 0) for step in expected.trace}
    assert len(kinds) == 4 and any(made.discarded_steps for _, made in cases)
    assert one.counters().pages_full_used == 0


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_preempted_at_every_step(number: int) -> None:
    """A race that loses its canvases with its pages, or goes on with one of them."""
    made = replace(asked(number, max_tokens=12), frames=False)
    expected = last(engine().submit(made))
    for turn in range(1, expected.usage.steps + 4):
        one = Engine(TINY, end_ids=())
        assert run_preempted(one, made, lambda now, _, t=turn: now == t)[1] == expected


def test_the_events_of_a_race() -> None:
    """A frame of a canvas that does not lead, or a commit of an attempt that did not win."""
    for number in range(1, 30, 5):
        events, output = run(engine().submit(asked(number)))
        frames = [event for event in events if event.type == "frame"]
        assert [(f.canvas, f.attempt, f.step, f.ids) for f in frames] == [
            (t.canvas, t.attempt, t.step, t.argmax) for t in output.trace
        ]
        for commit in (event for event in events if event.type == "commit"):
            final = [f for f in frames if f.canvas == commit.canvas][-1]
            assert (commit.attempt, commit.step) == (final.attempt, final.step + 1)


def test_what_was_thrown_away_is_counted() -> None:
    """Steps of a try that counts, or those of repairs, among the discarded ones."""
    for number in range(0, 40, 5):
        events, output = run(engine().submit(asked(number)))
        kept = sum(event.step for event in events if event.type == "commit")
        assert output.usage.steps == kept + output.usage.discarded_steps == len(output.trace)


def test_restarts_are_counted() -> None:
    """Canvases begun anew that no counter shows, or one for each row of a race."""
    one, rounds = engine(), 0
    before = one.counters().restarts
    for number in range(20):
        events, _ = run(one.submit(asked(number)))
        race = SETTINGS[number % len(SETTINGS)].get("race", 1)
        seen = {(e.canvas, e.attempt // race) for e in events if e.type == "frame"}
        rounds += len(seen) - len({canvas for canvas, _ in seen})
    assert one.counters().restarts - before == rounds > 10


def test_rows_of_a_race_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race of four passes for one canvas when passes are filled and shares are counted."""
    one = engine()
    seq = one.prepare(asked(0, 10, race=4, restart_after=0))
    one.add(seq)
    whole, sizes = one.batch.run, list[tuple[int, bool, int]]()

    def counted(work: list[Scheduled], *rest: Any) -> Any:
        sizes.extend((part.count, part.denoise, part.size) for part in work)
        return whole(work, *rest)

    monkeypatch.setattr(one.batch, "run", counted)
    one.step()
    one.step()
    assert sizes == [(10, False, 10), (0, True, 32)]
    assert one.scheduler.owners[""].usage == 0.0
    table = seq.block_table
    assert table is not None and len(table.forks) == 3 and table.count == 1 + 3


def test_pages_of_a_race_are_given_back() -> None:
    """Pages of rows that have left are held until the request ends."""
    one = engine()
    seq = one.prepare(asked(0, 62, race=3, restart_after=2, tries=1, max_steps=9, max_tokens=8,
                            confidence_threshold=0.0))  # fmt: skip
    one.add(seq)
    held = []
    while seq.output is None:
        one.step()
        check_scheduler(one.scheduler)
        held.append(0 if seq.block_table is None else seq.block_table.count)
    assert held == [6, 6, 6, *[2] * 6, 0], "two blocks each, until the best goes on alone"


def test_a_fork_begins_with_the_tokens_of_its_block() -> None:
    """The other rows of a race read whatever was in their pages."""
    one = engine()
    made = asked(1, 60)
    expected = by_reference(one, made)
    for buffer in one.memory.buffers:
        buffer.fill_(torch.nan)
    compare(last(one.submit(made)), expected)


def test_the_paged_path() -> None:
    """All canvases are written before any is read there: in one page they would be one canvas."""
    model = tiny(1)
    plain = Engine(model, end_ids=())
    cases = [asked(n, confidence_threshold=2.0) for n in range(1, 30, 2)]
    expected = [last(plain.submit(made)) for made in cases]
    model.choose_kernels(torch.device("cpu"), torch.float32, attention="paged")
    paged = Engine(model, end_ids=())
    streams = [paged.submit(made) for made in cases]
    for stream, alone in zip(streams, expected, strict=True):
        output = last(stream)
        assert output.token_ids == alone.token_ids
        for ours, theirs in zip(output.trace, alone.trace, strict=True):
            assert (ours.attempt, ours.ids) == (theirs.attempt, theirs.ids)
            assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-4)


def test_random_lives(count: Callable[[int, int], int]) -> None:
    """Races that come, go, are cancelled and give way where memory is scarce."""
    preemptions = 0
    for seed in range(count(3, 200)):
        draw = random.Random(seed)
        one = Engine(
            TINY, end_ids=(), max_running=draw.choice((2, 4)), chunk=64, cache_bytes=MEMORY,
            max_tokens=draw.choice((80, 400)),
        )  # fmt: skip
        live: list[tuple[Request, EventStream]] = []
        for _ in range(40):
            if len(live) < 6 and draw.random() < 0.4:
                made = asked(draw.randrange(99), draw.choice((1, 60, 64, 130)))
                made = replace(made, owner=draw.choice("ab"), priority=draw.choice((0, 0, 1)))
                live.append((made, one.submit(made)))
            elif live and draw.random() < 0.05:
                draw.choice(live)[1].close()
            one.step()
            check_scheduler(one.scheduler)
        for made, stream in live:
            output, expected = run(stream)[1], by_reference(one, made)
            if output.finish_reason == "cancelled":
                assert output.token_ids == expected.token_ids[: len(output.token_ids)]
            else:
                compare(output, expected)
        assert one.counters().pages_full_used == 0
        preemptions += one.counters().preemptions
    assert preemptions > 0


def test_a_race_that_does_not_fit() -> None:
    """It waits for ever, or ends the engine, where it could have been refused."""
    one = Engine(TINY, end_ids=(), chunk=64, cache_bytes=MEMORY // 2)
    with pytest.raises(InvalidRequest, match="race .*fewer.*cache_bytes"):
        one.prepare(asked(0, 10, race=16))
    limits = replace(one.limits, spare=100, pages=4, context=4 * PAGE, canvas=8)
    assert limits.room(SamplingParams(race=2)) == 2 * PAGE
    with pytest.raises(InvalidRequest, match="fewer"):
        limits.room(SamplingParams(race=3))


def test_auto_is_a_number_before_it_comes_here() -> None:
    """A canvas that is restarted after "auto" steps."""
    with pytest.raises(InvalidRequest, match="dgemma calibrate"):
        engine().prepare(asked(0, restart_after="auto"))


def test_the_checkpoints_restarts_give_way_to_a_stable_prefix() -> None:
    """Who asks for early text is told of an option that nobody set."""
    own = SamplingParams(restart_after=3, race=2)
    one = Engine(TINY, end_ids=(), defaults=own)
    plain = replace(request(1), params=SamplingParams(seed=1, max_steps=3, stable_prefix=True))
    params = one.prepare(plain).request.params
    assert (params.restart_after or 0, params.race or 1) == (0, 1)
    assert one.prepare(request(1)).request.params.race == 2
    other = Engine(TINY, end_ids=(), defaults=SamplingParams(stable_prefix=True))
    assert other.prepare(asked(0)).request.params.stable_prefix is False


@pytest.mark.parametrize(
    ("fields", "after"),
    [({}, 3), ({"max_steps": 6}, 3), ({"max_steps": 5}, 0), ({"max_steps": 2}, 0),
     ({"max_steps": 6, "tries": 3}, 0), ({"max_steps": 2, "restart_after": 1}, 1)],
)  # fmt: skip
def test_the_checkpoints_restarts_stay_within_max_steps(fields: dict[str, int], after: int) -> None:
    """Who allows five steps waits for six, two tries of three, since the checkpoint restarts."""
    one = Engine(TINY, end_ids=(), defaults=SamplingParams(restart_after=3))
    made = replace(request(1), params=SamplingParams(seed=1, **fields))
    assert (one.prepare(made).request.params.restart_after or 0) == after


def test_a_reading_is_made_once() -> None:
    """What is only read is begun anew until it pleases."""
    control = CanvasControl(ids=(5, 6), pinned=(0, 1), read_only=True)
    made = replace(asked(0, race=3, restart_after=1, max_steps=1, logprobs=0), canvas=control)
    output = last(engine().submit(made))
    assert output.usage.steps == 1 and output.usage.discarded_steps == 0


@pytest.mark.model
def test_tokens_of_the_reference_on_nano(count: Callable[[int, int], int]) -> None:
    """Pins, seeds, masks, scores, narrow canvases, several canvases."""
    one, discarded = nano_engine(endless=True), 0
    total = count(10, 100)
    cases = list[tuple[Request, Generation]]()
    for number in range(total):
        made = random_request(number, most_tokens=120)
        params = replace(made.params, **(SETTINGS[number % 3] | {"max_steps": 6}))
        made = replace(made, params=replace(params, confidence_threshold=0.05), trace=True)
        cases.append((made, by_reference(one, made)))
    streams = [one.submit(made) for made, _ in cases]
    for stream, (_, expected) in zip(streams, cases, strict=True):
        compare(last(stream), expected)
        discarded += expected.discarded_steps
    assert discarded > 0


@pytest.mark.model
@pytest.mark.parametrize("setting", [{"restart_after": 2, "tries": 3}, {"race": 3}])
def test_a_grammar_sees_one_canvas(setting: dict[str, int]) -> None:
    """A canvas that was set aside moves the grammar, or a repair is begun anew."""
    llm, repaired, discarded = nano(), 0, 0
    one = nano_engine()
    one.frontend = llm.frontend
    assert llm.frontend is not None
    for number in range(6):
        example = make_example("json", "heldout", 1, number)
        ids = tuple(llm.chat_ids(example.messages, None, False))
        regex = r'\{"[a-z]+":("[A-Za-z ]+"|[0-9]+),"[a-z]+":("[A-Za-z ]+"|[0-9]+)\}'
        params = SamplingParams(seed=number, max_steps=6, max_tokens=90, regex=regex, **setting)
        made = Request(token_ids=ids, params=params, trace=True)
        found = llm.frontend.matcher(made)
        assert found is not None
        output = last(one.submit(made))
        expected = by_reference(one, made, ConstrainedAnswer(*found))
        compare(output, expected)
        assert output.constraint is not None and output.constraint.complete
        repaired += output.constraint.rounds
        discarded += output.usage.discarded_steps
    assert repaired > 0 and (discarded > 0) == ("tries" in setting)


@pytest.mark.model
def test_an_early_winner_streams_like_any_other() -> None:
    """A stream that ends otherwise than the answer that is awaited."""
    one = nano_engine()
    for number in range(4):
        example = make_example("sudoku", "heldout", 1, number)
        ids = tuple(nano().chat_ids(example.messages, None, False))
        params = SamplingParams(seed=number, race=4, restart_after=8)
        made = Request(token_ids=ids, params=params, frames=True)
        events: list[Event] = list(one.submit(made))
        output = events[-1].output
        assert output is not None and output == last(one.submit(made))
        committed = [event for event in events if event.type == "commit"]
        assert sum((event.ids for event in committed), ()) == output.token_ids
