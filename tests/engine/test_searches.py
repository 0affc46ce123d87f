"""Searches for closing texts: their request waits, all others make their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dgemma.engine.engine import Engine
from dgemma.engine.scheduler import PATIENCE
from dgemma.engine.searches import SECONDS, SLICE, SearchQueue
from dgemma.engine.sequence import Sequence as Running
from dgemma.errors import EngineError
from dgemma.events import EventStream
from dgemma.matcher import Search
from dgemma.types import Output, Request
from tests.support.engine_checks import check_scheduler
from tests.support.engines import engine as tiny_engine
from tests.support.engines import last, request, submit_kept, tiny


class SlowMatcher:
    """Any text, and a search of so many steps at the end of each canvas."""

    accepting = True
    finished = False

    def __init__(self, steps: int, fault: Exception | None = None) -> None:
        self.steps, self.fault, self.spent = steps, fault, 0

    def accept(self, ids: Sequence[int]) -> int:
        return len(ids)

    def undo(self, count: int) -> None:
        pass

    def allowed(self) -> Any:
        return np.full(2, -1, dtype=np.int32)

    def forced(self) -> list[int]:
        return []

    def can_complete(self, room: int) -> Search[bool]:
        for _ in range(self.steps):
            self.spent += 1
            yield 1
        if self.fault is not None:
            raise self.fault
        return True

    def completion(self, room: int) -> Search[list[int] | None]:
        return [] if (yield from self.can_complete(room)) else None

    def alphabet(self) -> None:
        return None


def held_up(one: Engine, asked: Request, matcher: SlowMatcher) -> EventStream:
    """Submit a request that is held up at each canvas, and otherwise free."""
    return submit_kept(one, asked, matcher, "slow")


def still() -> float:
    """A clock on which no time passes, so that steps alone count."""
    return 0.0


def engine(budget: int, **options: Any) -> Engine:
    """An engine that no end id stops."""
    one = Engine(tiny(), end_ids=(), **options) if options else tiny_engine()
    one.searches = SearchQueue(budget, clock=still)
    return one


def waiting_search(one: Engine) -> Running:
    """Step until the only search has begun; its sequence."""
    for _ in range(20):
        one.step()
        if one.searches.sequences:
            (seq,) = one.searches.sequences
            return seq
    raise AssertionError("no search began")


def whole(seed: int) -> Request:
    """Three canvases, and nothing to be cut off."""
    return request(seed, max_tokens=24)


def plain(seed: int) -> Output:
    """The same request without a search."""
    return last(tiny_engine().submit(whole(seed)))


def test_the_others_step_during_a_search() -> None:
    """A search of a thousand steps between two passes, in which all others wait."""
    one = engine(budget=10)
    matcher = SlowMatcher(1000)
    neighbour = one.submit(request(2, max_tokens=200))
    held = held_up(one, whole(1), matcher)
    seq = waiting_search(one)
    steps, pages = one.counters().steps, seq.block_table
    for number in range(40):
        before = matcher.spent
        one.step()
        assert matcher.spent - before == 10, "the budget of a pass"
        assert one.counters().steps == steps + number + 1, "the neighbour, and nobody else"
        assert seq.block_table is pages is not None, "its pages stay"
        check_scheduler(one.scheduler)
    assert last(held).token_ids == plain(1).token_ids
    neighbour.close()


@pytest.mark.parametrize("budget", [1, 7, 10**9])
def test_the_budget_changes_no_token(budget: int) -> None:
    """A canvas that goes on before its search has ended, or that is committed twice."""
    one = engine(budget)
    streams = [held_up(one, whole(seed), SlowMatcher(5 * seed)) for seed in range(4)]
    for seed, stream in enumerate(streams):
        output, expected = last(stream), plain(seed)
        assert output.token_ids == expected.token_ids and output.usage == expected.usage
    assert one.counters().committed_tokens == 4 * 24 and not one.searches.sequences
    check_scheduler(one.scheduler)


def test_alone_it_goes_on_to_the_end() -> None:
    """A search that advances only with the passes of others never ends."""
    one = engine(budget=3)
    assert last(held_up(one, whole(1), SlowMatcher(500))).token_ids == plain(1).token_ids
    assert one.counters().passes < 20, "no pass is made for it"


@pytest.mark.parametrize("how", ["cancelled", "deadline", "end_all", "replaced"])
def test_it_ends_with_its_request(how: str) -> None:
    """A search that goes on for nobody, or a request that cannot end before it."""
    now = [0.0]
    one = engine(5, clock=lambda: now[0])
    neighbour = one.submit(whole(2))
    asked = replace(whole(1), deadline_s=9.0, replaces="editor")
    matcher = SlowMatcher(10**6)
    held = held_up(one, asked, matcher)
    seq = waiting_search(one)
    spent = matcher.spent
    if how == "cancelled":
        held.close()
    elif how == "deadline":
        now[0] = 10.0
    elif how == "end_all":
        one.end_all()
    else:
        one.submit(asked).close()
    one.step()
    one.step()
    assert matcher.spent == spent and not one.searches.sequences
    output = seq.output
    assert output is not None and not output.token_ids
    assert output.finish_reason == ("error" if how == "deadline" else "cancelled")
    if how != "end_all":
        assert last(neighbour).token_ids == plain(2).token_ids
    check_scheduler(one.scheduler)
    assert not len(one.scheduler)


def test_a_fault_in_a_search_ends_its_request_alone() -> None:
    """A grammar that breaks in the middle of a search takes the others along."""
    one = engine(7)
    bad = held_up(one, whole(1), SlowMatcher(30, EngineError("too complex")))
    odd = held_up(one, whole(3), SlowMatcher(50, ZeroDivisionError("a mistake")))
    good = [one.submit(whole(2)), held_up(one, whole(4), SlowMatcher(40))]
    assert last(bad).error == "EngineError: too complex"
    assert last(odd).error == "ZeroDivisionError: a mistake"
    assert [last(stream).token_ids for stream in good] == [plain(k).token_ids for k in (2, 4)]
    check_scheduler(one.scheduler)


def test_a_pass_that_fails_during_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of a neighbour ends the request that only waits for its search."""
    one = engine(5)
    held = held_up(one, whole(1), SlowMatcher(400))
    waiting_search(one)
    forward = one.model.forward
    monkeypatch.setattr(one.model, "forward", lambda parts: 1 / 0)
    assert "ZeroDivisionError" in (last(one.submit(whole(2))).error or "")
    monkeypatch.setattr(one.model, "forward", forward)
    assert last(held).token_ids == plain(1).token_ids


def test_a_search_goes_on_after_preemption() -> None:
    """A search that is lost with the pages, or a sequence that takes pages to do nothing."""
    one = engine(5, max_running=1)
    matcher = SlowMatcher(300)
    held = held_up(one, replace(whole(1), priority=-1), matcher)
    seq = waiting_search(one)
    person = one.submit(whole(2))
    one.step()
    assert seq.waiting and seq.search is not None and one.counters().preemptions == 1
    assert last(person).token_ids == plain(2).token_ids
    while seq.search is not None:
        assert seq.waiting and not one.scheduler.running, "there is nothing to do for it"
        one.step()
        check_scheduler(one.scheduler)
    assert last(held).token_ids == plain(1).token_ids


def test_a_long_search_holds_no_place() -> None:
    """A batch that is full of requests that only search, while others wait for room."""
    one = engine(5, max_running=1)
    held = held_up(one, whole(1), SlowMatcher(2000))
    seq = waiting_search(one)
    other = one.submit(whole(2))
    for _ in range(PATIENCE):
        one.step()
        assert seq.block_table is not None, "a short search does not lose its place"
    assert last(other).token_ids == plain(2).token_ids
    assert seq.search is not None and seq.waiting and one.counters().preemptions == 1
    assert last(held).token_ids == plain(1).token_ids
    check_scheduler(one.scheduler)


def test_owners_take_turns_with_their_searches() -> None:
    """One owner's many searches before another's short one."""

    def search(owner: str, steps: int) -> Search[None]:
        for _ in range(steps):
            spent[owner] += 1
            yield 1

    spent, queue = {"many": 0, "one": 0}, SearchQueue(10 * SLICE, still)
    for owner in ("many",) * 30 + ("one",):
        seq = Running(replace(whole(1), owner=owner), 8, 256)
        seq.search = search(owner, 10**6)
        queue.add(seq)
    queue.advance()
    assert spent == {"many": 5 * SLICE, "one": 5 * SLICE} and len(queue.sequences) == 31


def test_pieces_that_take_long() -> None:
    """Masks of a hostile expression, each a thousand times as long as it counts for."""

    def search() -> Search[None]:
        while True:
            now[0] += 0.6 * SECONDS
            yield 1

    now = [0.0]
    queue = SearchQueue(budget=10**9, clock=lambda: now[0])
    for _ in range(3):
        seq = Running(whole(1), 8, 256)
        seq.search = search()
        queue.add(seq)
    for number in range(1, 4):
        assert queue.advance() == []
        assert now[0] == pytest.approx(2 * 0.6 * number * SECONDS), "two pieces, then the others"


def test_searches_take_turns() -> None:
    """A long search before a short one that has to wait for its end; a budget for each of them."""

    def search(name: str, steps: int) -> Search[None]:
        for _ in range(steps):
            spent.append(name)
            yield 1

    spent = list[str]()
    queue, made = SearchQueue(10 * SLICE, still), dict[str, Running]()
    for name, steps in (("long", 10**6), ("also long", 10**6), ("short", SLICE + 1)):
        seq = Running(whole(1), 8, 256)
        seq.search, made[name] = search(name, steps), seq
        queue.add(seq)
    assert queue.advance() == [made["short"]] and made["short"].search is None
    assert len(spent) == 10 * SLICE - 1 and spent.count("short") == SLICE + 1
    assert abs(spent.count("long") - spent.count("also long")) <= SLICE
    queue.discard(made["long"])
    spent.clear()
    assert queue.advance() == [] and set(spent) == {"also long"}
