"""Who runs when: order, fairness, deadlines, preemption. A simulated engine, no tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.engine.scheduler import EXPRESS
from dgemma.engine.sequence import Sequence
from dgemma.errors import InvalidRequest, Overloaded
from dgemma.types import PAGE
from tests.support.engine_checks import check_scheduler
from tests.support.simulation import Simulation, scheduler, sequence


def test_first_come_first_served_and_side_by_side() -> None:
    """A batch that is filled in another order, or beyond its size."""
    sim = Simulation(scheduler(max_running=2))
    sequences = [sim.add(sequence(first=k)) for k in range(3)]
    assert sim.step() == sequences[:2]
    sim.run()
    assert list(sim.ended) == sequences


def test_priority_and_ageing() -> None:
    """The background starves, or the person waits behind it."""
    sim = Simulation(scheduler(max_running=1, age_s=5.0), canvases=lambda _: 5)
    running = sim.add(sequence(first=1))
    sim.step()
    low, high = sim.add(sequence(first=2, priority=-1)), sim.add(sequence(first=3))
    sim.run()
    assert list(sim.ended) == [running, high, low]
    sim = Simulation(scheduler(max_running=1, age_s=5.0))
    old = sim.add(sequence(first=2, priority=-1))
    for number in range(12):  # a stream of people; each is served in four passes
        sim.add(sequence(first=10 + number))
        for _ in range(4):
            sim.step()
    assert old in sim.ended, "it waits for ever"


def test_owners_take_turns() -> None:
    """One owner's hundred requests go before another's one."""
    sim = Simulation(scheduler(max_running=1))
    many = [sim.add(sequence(first=k, owner="a")) for k in range(5)]
    one = sim.add(sequence(first=99, owner="b"))
    sim.run()
    assert list(sim.ended).index(one) <= 1
    assert [j for j in sim.ended if j is not one] == many


def test_an_owner_that_was_away_has_no_credit() -> None:
    """Whoever comes late is served alone until it has had as much as the others ever had."""
    sim = Simulation(scheduler(max_running=1))
    for number in range(20):
        sim.add(sequence(first=number, owner="a"))
    for _ in range(40):
        sim.step()
    done = len(sim.ended)
    for number in range(20):
        sim.add(sequence(first=100 + number, owner="b"))
    for _ in range(40):
        sim.step()
    later = [j.owner for j in list(sim.ended)[done:]]
    assert 3 <= later.count("a") <= 7 and 3 <= later.count("b") <= 7


def test_a_newer_request_of_the_slot_cancels_the_older() -> None:
    """An editor's stale completions are finished one by one while a person types."""
    sim = Simulation(scheduler())
    first = sim.add(sequence(first=1, replaces="editor", owner="a"))
    other = sim.add(sequence(first=2, replaces="editor", owner="b"))
    sim.step()
    second = sim.add(sequence(first=3, replaces="editor", owner="a"))
    assert sim.ended == {first: "cancelled"}
    sim.run()
    assert sim.ended[second] == sim.ended[other] == "done"


def test_deadline_and_patience() -> None:
    """A request runs past its deadline, or waits past its patience, or is ended though it began."""
    sim = Simulation(scheduler(max_running=1), canvases=lambda _: 10)
    late = sim.add(sequence(first=1, deadline_s=5, queue_timeout_s=2))
    hasty = sim.add(sequence(first=2, queue_timeout_s=3))
    calm = sim.add(sequence(first=3))
    sim.run()
    assert "deadline of 5" in sim.ended[late] and "3 s (queue_timeout_s)" in sim.ended[hasty]
    assert sim.ended[calm] == "done"


def test_deadlines_of_the_ended_are_forgotten() -> None:
    """A server that gives every request an hour keeps every request for an hour."""
    sim = Simulation(scheduler())
    for number in range(400):
        sim.add(sequence(first=number % 60, deadline_s=3600))
        sim.step()
    sim.run()
    assert len(sim.ended) == 400 and len(sim.scheduler._deadlines) < 100


def test_too_many_wait() -> None:
    """A queue without a bound: everyone waits, nobody is told."""
    sim = Simulation(scheduler(max_waiting=2))
    sim.add(sequence())
    sim.add(sequence())
    with pytest.raises(Overloaded, match="2 requests wait"):
        sim.add(sequence())
    sim.run()
    assert len(sim.ended) == 2


@pytest.mark.parametrize(
    "values",
    [{"deadline_s": 0}, {"queue_timeout_s": -1}, {"priority": "high"}, {"deadline_s": float("nan")},
     {"deadline_s": 10**400}, {"queue_timeout_s": float("inf")}, {"priority": 10**400},
     {"owner": ["a"]}, {"replaces": 3}],
)  # fmt: skip
def test_refused(values: dict[str, Any]) -> None:
    """A deadline of nothing is taken and then fails every time."""
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        sequence(**values)


def test_pages_run_out_and_someone_steps_aside() -> None:
    """Two requests that grow into the last pages wait for each other, or one is lost."""
    # Each needs 5 pages in the end, both together have 8.
    sim = Simulation(scheduler(full=8, sliding=30), canvases=lambda _: 4)
    first, second = sim.add(sequence(first=1)), sim.add(sequence(first=2))
    while len(sim.scheduler):
        sim.step()
        check_scheduler(sim.scheduler)
    assert list(sim.ended) == [first, second] and sim.scheduler.preemptions >= 1
    assert first.steps == second.steps == 12, "a step was lost or made twice"


def test_a_higher_priority_takes_the_place_of_a_lower() -> None:
    """A person waits until a batch of drafts is done."""
    sim = Simulation(scheduler(max_running=2), canvases=lambda _: 4)
    drafts = [sim.add(sequence(first=k, priority=-1)) for k in (1, 2)]
    sim.step()
    person = sim.add(sequence(first=3))
    assert sim.step() == [person], "what runs pauses until the first frame"
    assert person in sim.step()
    sim.run()
    assert list(sim.ended)[0] is person and set(sim.ended) == {person, *drafts}


def test_nobody_is_set_back_in_vain() -> None:
    """A request that would not fit all the same drives out one that could have run on."""
    sched = scheduler(full=12, sliding=30, max_running=3)
    sim = Simulation(sched, canvases=lambda j: 3 if j.number == 1 else 1)
    big = sim.add(sequence(prompt=7 * PAGE, first=1, priority=2))
    small = sim.add(sequence(first=2))
    sim.step()
    sim.step()
    middle = sim.add(sequence(prompt=8 * PAGE, first=3, priority=1))
    for _ in range(3):
        sim.step()
        assert small.block_table is not None
    sim.run()
    assert sim.scheduler.preemptions == 0
    assert set(sim.ended.values()) == {"done"} and {big, small, middle} == set(sim.ended)


def test_a_person_behind_a_backlog() -> None:
    """Background work that has waited long makes a whole priority of newcomers wait behind it."""
    sim = Simulation(scheduler(max_running=2, age_s=5.0), canvases=lambda _: 20)
    for number in range(10):
        sim.add(sequence(first=number, priority=-1))
    for _ in range(30):
        sim.step()
    person = sim.add(sequence(first=99))
    assert person in sim.step()


def test_a_person_does_not_wait_for_a_paused_drafts_pages() -> None:
    """The pages that a newcomer needs are being made by one that is left out for its sake."""
    sim = Simulation(scheduler(max_running=4))
    sim.add(sequence(prompt=20 * PAGE, priority=-1))
    sim.step()
    person = sim.add(sequence(prompt=20 * PAGE))
    assert person in sim.step()


def test_the_ended_leave_no_place_behind() -> None:
    """An editor that submits and cancels behind a full batch fills the queue for ever."""
    sim = Simulation(scheduler(max_running=1), canvases=lambda _: 10**6)
    sim.add(sequence(first=1))
    sim.add(sequence(first=2))
    sim.step()
    for number in range(500):
        sim.add(sequence(first=number % 60, replaces="editor"))
    [owner] = sim.scheduler.owners
    assert sum(map(len, owner.queues.values())) < 100
    check_scheduler(sim.scheduler)


def test_a_cancelled_newcomer_makes_no_room() -> None:
    """Two that do not fit together are set back in turn, each time someone gives up waiting."""
    sim = Simulation(scheduler(full=8, sliding=30), canvases=lambda _: 4)
    first, second = sim.add(sequence(first=1)), sim.add(sequence(first=2))
    while not sim.scheduler.preemptions:
        sim.step()
    sim.end(sim.add(sequence(first=10)), "cancelled")
    sim.step()
    assert second.waiting and first.block_table is not None
    sim.run()


def test_a_stream_of_people_does_not_stop_the_rest() -> None:
    """Passes that leave out the background, one after another without an end."""
    sim = Simulation(scheduler(max_running=16, age_s=1e9), canvases=lambda j: 1 - 9 * j.priority)
    draft = sim.add(sequence(first=1, priority=-1))
    sim.step()
    took_part = 0
    for number in range(40):
        sim.add(sequence(first=10 + number, prompt=3 * PAGE))
        took_part += draft in sim.step()
    assert took_part >= 40 // (EXPRESS + 1) - 1


def test_more_tokens_than_a_pass_holds() -> None:
    """Whoever does not fit into a pass is never chosen."""
    sim = Simulation(scheduler(max_tokens=2 * PAGE), canvases=lambda _: 3)
    sequences = [sim.add(sequence(first=k)) for k in range(5)]
    seen: list[Sequence] = []
    for _ in range(6):
        took = sim.step()
        assert sum(sim.sizes) <= 2 * PAGE
        seen += took
    assert set(seen) == set(sequences)
    sim.run()


def test_after_trouble_passes_are_smaller_for_a_while() -> None:
    """Out of memory once more at every pass, or small passes for ever."""
    sim = Simulation(scheduler(max_tokens=1024))
    sim.scheduler.shrink(1024)
    assert sim.scheduler.limit == 512
    sim.scheduler.shrink(100)
    assert sim.scheduler.limit == 50
    for _ in range(600):
        sim.step()
    assert sim.scheduler.limit == 1024


def test_drafts_of_one_prompt_encode_it_once() -> None:
    """n drafts pay n times for their common prompt; or one owner uses the pages of another."""
    sim = Simulation(scheduler())
    drafts = [sim.add(sequence(prompt=5 * PAGE + 3, owner=owner)) for owner in "aabaab"]
    assert sim.step() == [drafts[0], drafts[2]]
    while len(sim.scheduler):
        sim.step()
        check_scheduler(sim.scheduler)
    assert sim.scheduler.pages.hit_tokens == 4 * 5 * PAGE
    assert set(sim.ended) == set(drafts)


def test_a_request_whose_pages_cannot_be_had_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while pages are given out stops everyone, or leaves a request without an end."""
    sim = Simulation(scheduler())
    bad, good = sim.add(sequence(first=66)), sim.add(sequence(first=1))
    pages = sim.scheduler.pages
    whole = pages.open

    def broken(prefix: Any, *rest: Any) -> Any:
        if prefix.ids[0] == 66:
            raise MemoryError("no page")
        return whole(prefix, *rest)

    monkeypatch.setattr(pages, "open", broken)
    sim.run()
    assert sim.ended == {bad: "MemoryError: no page", good: "done"}
    check_scheduler(sim.scheduler)


def simulate(total: int, seed: int, check_every: int) -> Simulation:
    """Random requests at random times: bursts, owners, slots, deadlines, cancels, few pages."""
    draw = random.Random(seed)
    sched = scheduler(full=300, sliding=160, max_running=24, max_tokens=1500, max_waiting=10**9)
    sim = Simulation(sched, canvases=lambda j: 1 + j.number % 4)
    born: list[Sequence] = []
    while len(born) < total or len(sched):
        if len(born) < total and len(sched) < 400:
            for _ in range(draw.choice((0, 1, 3, 20))):
                prompt = draw.choice((1, 30, 63, 64, 65, 200, 700))
                born.append(
                    sim.add(
                        sequence(
                            prompt=prompt, first=draw.randrange(60),
                            owner=str(draw.randrange(12)), priority=draw.choice((0, 0, 0, 1, -1)),
                            replaces=draw.choice(("", "", "", "x")),
                            deadline_s=draw.choice((None, None, 900.0)),
                        )
                    )
                )  # fmt: skip
        if born and draw.random() < 0.02:
            victim = draw.choice(born[-200:])
            if victim not in sim.ended:
                sim.end(victim, "cancelled")
        sim.step()
        if sched.passes % check_every == 0:
            check_scheduler(sched)
    check_scheduler(sched)
    assert set(sim.ended) == set(born), "someone starved, or ended twice"
    assert not sched.pages.tables and sched.pages.available == 300
    return sim


@pytest.mark.parametrize("seed", [0, 1])
def test_every_invariant_after_every_pass(seed: int) -> None:
    """See `Scheduler.check`."""
    sim = simulate(400, seed, check_every=1)
    assert sim.scheduler.preemptions > 0 and sim.scheduler.pages.hit_tokens > 0


@pytest.mark.slow
def test_a_hundred_thousand(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """Rare orders of events; bookkeeping whose cost grows with what has gone by."""
    total = count(5_000, 100_000)
    sim = simulate(total, 7, check_every=500)
    reasons = [reason if len(reason) < 10 else "deadline" for reason in sim.ended.values()]
    assert reasons.count("done") > total / 2
    record("simulated requests, all ended once", len(reasons))
    record("simulated requests set back", sim.scheduler.preemptions, "> 0")
