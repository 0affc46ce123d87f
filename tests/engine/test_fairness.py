"""Owners share places, pages and passes. A simulated engine: no tensors, and passes for time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from dgemma.engine.places import is_over, pages_of
from dgemma.engine.scheduler import SOON
from dgemma.engine.sequence import Sequence as Live
from dgemma.errors import Overloaded
from dgemma.types import PAGE
from tests.support.engine_checks import check_scheduler
from tests.support.simulation import Simulation, scheduler, sequence

NAMES = "abcdefghijklmnop"


@dataclass(frozen=True)
class Load:
    """An owner that has always so many live requests, each drawn from these."""

    live: int
    prompts: Sequence[int] = (10,)
    canvases: Sequence[int] = (20,)
    priorities: Sequence[int] = (0,)


class Shared(Simulation):
    """Counts tokens and waits of each owner.

    Attributes:
        tokens: that each owner has had.
        longest: most passes in a row that an owner had sequences and none of them had a place.
    """

    def __init__(self, seed: int = 0, **options: Any) -> None:
        sizes = {"full": 4000, "sliding": 3000, "max_waiting": 10**6}
        self.wanted: dict[Live, int] = {}
        super().__init__(scheduler(**sizes | options), self.wanted.__getitem__)
        self.draw = random.Random(seed)
        self.tokens: Counter[str] = Counter()
        self.longest: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()

    def come(self, owner: str, load: Load) -> Live:
        """A new request of an owner."""
        new = sequence(
            prompt=self.draw.choice(load.prompts), first=len(self.wanted) % 900, owner=owner,
            priority=self.draw.choice(load.priorities),
        )  # fmt: skip
        self.wanted[new] = self.draw.choice(load.canvases)
        return self.add(new)

    def step(self, seconds: float = 1.0) -> list[Live]:
        took = super().step(seconds)
        for seq, size in zip(took, self.sizes, strict=True):
            self.tokens[seq.owner] += size
        for owner in self.scheduler.owners:
            kept_out = owner.waiting and not owner.running
            self._waits[owner.name] = self._waits[owner.name] + 1 if kept_out else 0
            self.longest[owner.name] = max(self.longest[owner.name], self._waits[owner.name])
        return took

    def keep(self, loads: dict[str, Load], passes: int) -> None:
        """Run so many passes under these loads."""
        for number in range(passes):
            for name, load in loads.items():
                live = sum(one.live for one in self.scheduler.owners if one.name == name)
                for _ in range(load.live - live):
                    self.come(name, load)
            self.step()
            if number % 50 == 0:
                check_scheduler(self.scheduler)

    def shares(self) -> dict[str, float]:
        """Part of all tokens that each owner has had."""
        return {name: count / self.tokens.total() for name, count in self.tokens.items()}


ATTACK = Load(live=48, canvases=(60,))
"""Three requests of n = 16 and thousands of tokens."""


@pytest.mark.fault("R H1")
@pytest.mark.parametrize("places", [2, 32])
def test_another_owner_is_served_at_once(places: int) -> None:
    """One owner's long answers hold every place until they end."""
    sim = Shared(max_running=places)
    sim.keep({"a": ATTACK}, 40)
    before = len(sim.ended)
    for _ in range(5):
        person = sim.come("b", Load(1, canvases=(1,)))
        for _ in range(3):  # its three steps
            took = sim.step()
            assert person in took
            assert sum(sim.sizes) <= sim.scheduler.shared + 2 * PAGE, "a long pass is a long wait"
        assert sim.ended[person] == "done"
    assert len(sim.ended) == before + 5 and sim.scheduler.preemptions <= 5


@pytest.mark.fault("R H3")
def test_prompts_stay_in_small_pieces_while_another_owner_may_be_back() -> None:
    """Between two calls of a person who chats, a pass takes a thousand tokens of someone's prompt:
    the next call waits for it."""
    sim = Shared(chunk=16 * PAGE)
    sim.come("a", Load(1, prompts=(60 * PAGE,)))
    sim.step()
    assert sim.sizes == [16 * PAGE]
    person = sim.come("b", Load(1))
    assert person in sim.step()
    for _ in range(3):  # three calls, with a pause before each
        sim.end(person, "left")
        for _ in range(2):
            sim.step()
            assert sim.sizes == [sim.scheduler.shared]
        person = sim.come("b", Load(1))
        assert person in sim.step()
    sim.end(person, "left")
    for _ in range(SOON + 1):
        sim.step()
    sim.come("a", Load(1, prompts=(30 * PAGE,)))
    sim.step()
    assert max(sim.sizes) == 16 * PAGE, "nobody comes any more"


@pytest.mark.fault("R H1")
@pytest.mark.parametrize("seed", range(6))
def test_shares_of_random_mixes(seed: int) -> None:
    """Who asks for more, longer, or more urgently has more than an equal share."""
    draw = random.Random(seed)
    owners, places = draw.choice(((2, 4), (3, 8), (5, 5), (7, 4), (9, 2), (6, 32)))
    loads = {
        name: Load(
            live=draw.choice((4, 9, 40)),
            prompts=draw.sample((1, 10, 65, 200, 700), 2),
            canvases=draw.choice(((1,), (1, 4), (3, 20), (30,))),
            priorities=draw.choice(((0,), (0, 1), (1000,), (-1000, 0))),
        )
        for name in NAMES[:owners]
    }  # fmt: skip
    sim = Shared(seed, max_running=places, max_tokens=1024)
    sim.keep(loads, 600)
    for name, share in sim.shares().items():
        assert 0.85 < share * owners < 1.15, (loads, sim.shares())
        # Nobody has a second turn before all have had one. Most passes of a turn: a prompt in
        # pieces of a page, then a canvas of three steps.
        turn = 700 // PAGE + 4
        rounds = -(-owners // places)
        assert sim.longest[name] <= (1 if owners <= places else (rounds + 1) * turn), sim.longest


@pytest.mark.fault("R H1")
def test_priority_orders_an_owners_own_requests_alone() -> None:
    """A field that every client may set takes the places, the pages and the passes of others."""
    loud, calm = Load(20, canvases=(5,), priorities=(1000,)), Load(20, canvases=(5,))
    sim = Shared(max_running=4, max_tokens=1024)
    sim.keep({"a": loud, "b": calm, "c": Load(20, canvases=(5,), priorities=(-1000,))}, 600)
    assert all(0.3 < share < 0.37 for share in sim.shares().values()), sim.shares()
    # Newcomers of a higher priority put off the first owner's own requests until their first frame.
    sim = Shared(max_running=16)
    mine, theirs = (sim.come(name, ATTACK) for name in "ab")
    sim.step()
    sim.come("a", loud)
    took = sim.step()
    assert theirs in took and mine not in took


def test_an_answer_makes_a_canvas_before_it_gives_way_to_an_equal() -> None:
    """Owners who take turns set each other back so often that nobody gets on."""
    sim = Shared(max_running=4)
    preempt, early = sim.scheduler.preempt, list[str]()

    def noted(seq: Live) -> None:
        held = len(sim.scheduler.owners[seq.owner].running)
        if held == 1 and not is_over(seq):
            early.append(seq.owner)
        preempt(seq)

    sim.scheduler.preempt = noted  # type: ignore[method-assign]
    sim.keep({name: Load(3, canvases=(6,)) for name in NAMES[:7]}, 400)
    assert sim.scheduler.preemptions > 50 and not early
    canvases = sum(sim.wanted[seq] for seq in sim.ended)
    assert sim.scheduler.preemptions <= 1.2 * canvases
    # With a place for each owner nobody needs to give way.
    sim = Shared(max_running=7)
    sim.keep({name: Load(3, canvases=(6,)) for name in NAMES[:7]}, 400)
    assert sim.scheduler.preemptions == 0


def test_of_many_places_each_owner_gets_as_many() -> None:
    """An owner that comes second has one place for ever."""
    sim = Shared(max_running=9)
    sim.keep({"a": ATTACK}, 10)
    sim.keep({"a": ATTACK, "b": ATTACK}, 20)
    places = {owner.name: len(owner.running) for owner in sim.scheduler.owners}
    assert sorted(places.values()) == [4, 5]
    assert sim.scheduler.preemptions <= 6


def test_nobody_saves_up_a_share() -> None:
    """An owner with one request for long has all places for long when it sends many."""
    sim = Shared(max_running=4, max_tokens=4 * PAGE)
    sim.keep({"a": ATTACK, "b": Load(1, canvases=(100,))}, 290)
    sim.tokens.clear()
    sim.keep({"a": ATTACK, "b": ATTACK}, 60)
    assert 0.4 < sim.shares()["a"] < 0.6 and sim.longest["a"] <= 1


def test_coming_and_going_gains_nothing() -> None:
    """An owner whose requests come one by one begins each time as if it had had nothing."""
    sim = Shared(max_running=1)
    sim.keep({"a": Load(1, canvases=(200,)), "b": Load(1, prompts=(600,), canvases=(1,))}, 500)
    assert sim.shares()["b"] < 0.6
    assert sim.longest["a"] <= 40


def test_ever_new_owners_do_not_shut_out_an_older_one() -> None:
    """Whoever had much before waits for ever behind those that had nothing."""
    sim = Shared(max_running=1, age_s=30.0)
    sim.keep({"a": Load(1, prompts=(3000,), canvases=(2,))}, 25)
    old = next(seq for seq in sim.scheduler.running if seq.owner == "a")
    for number in range(120):
        if number % 3 == 0:
            sim.come(f"new {number}", Load(1, canvases=(1,)))
        sim.step()
    assert old in sim.ended and sim.longest["a"] <= 40


@pytest.mark.fault("R H1")
def test_an_owner_does_not_hold_all_pages() -> None:
    """Long contexts of one owner leave no page to another, though there are places."""
    sim = Shared(full=64, sliding=60, max_running=32)
    long = Load(10, prompts=(10 * PAGE,), canvases=(40,))
    sim.keep({"a": long}, 60)
    assert sim.scheduler.pages.available < 12
    person = sim.come("b", Load(1, prompts=(8 * PAGE,), canvases=(1,)))
    assert person in sim.step()
    for _ in range(12):  # alone it takes six
        assert not person.waiting
        sim.step()
        check_scheduler(sim.scheduler)
    assert sim.ended[person] == "done"


@pytest.mark.fault("R H1")
def test_what_grows_takes_pages_from_the_owner_that_has_most() -> None:
    """Whoever came last loses its pages, though another owner's contexts fill the memory."""
    sim = Shared(full=64, sliding=60, max_running=32)
    preempt, unfair = sim.scheduler.preempt, list[str]()

    def noted(seq: Live) -> None:
        held = {owner.name: pages_of(owner) for owner in sim.scheduler.owners}
        if seq.owner == "b" and held["b"] < max(held.values()) and not is_over(seq):
            unfair.append(seq.owner)
        preempt(seq)

    sim.scheduler.preempt = noted  # type: ignore[method-assign]
    sim.keep({"a": Load(10, prompts=(10 * PAGE,), canvases=(40,))}, 60)
    small = sim.come("b", Load(1, canvases=(20,)))
    sim.keep({"a": Load(10, prompts=(10 * PAGE,), canvases=(40,))}, 150)
    assert sim.ended[small] == "done" and sim.scheduler.preemptions > 5 and not unfair


def test_a_full_queue_has_room_for_another_owner() -> None:
    """One owner's requests fill the queue, and all others are refused."""
    sim = Simulation(scheduler(max_running=1, max_waiting=8), canvases=lambda _: 10**6)
    for number in range(9):
        sim.add(sequence(first=number, owner="a"))
        sim.step()
    with pytest.raises(Overloaded):
        sim.add(sequence(owner="a"))
    for number in range(4):
        sim.add(sequence(first=100 + number, owner="b"))
    with pytest.raises(Overloaded):
        sim.add(sequence(owner="b"))
    sim.add(sequence(first=200, owner="c"))
    assert sim.scheduler.waiting == 13


def test_one_owner_alone_is_not_bounded() -> None:
    """A server without keys divides its passes among nobody."""
    sim = Shared(max_running=32)
    sim.keep({"": ATTACK}, 5)
    assert len(sim.step()) == 32
