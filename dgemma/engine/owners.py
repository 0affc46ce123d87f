"""The owners of live sequences: who waits and who runs, and whose turn it is.

Knows the order within an owner and between owners. It must not know tensors (no torch), pages or
passes.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from dgemma.engine.sequence import Sequence
from dgemma.errors import Overloaded

SPARE = 64
"""Places of ended sequences that a queue keeps before they are cleared away."""

MOST_GONE = 1024
"""Owners without a live sequence whose usage is kept."""

Place = tuple[int, int, Sequence]
"""A place in a queue: order of arrival, ticket, sequence."""


@dataclass(slots=True, eq=False)
class Owner:
    """An owner and its live sequences.

    Attributes:
        name: `Request.owner`.
        usage: tokens that it has had, compared with other owners alone; see `Owners.settle`.
        since: when it came, or lost its last place, in seconds.
        live: sequences that wait or run.
        waiting: those of them that wait.
        running: those that have a place.
        queues: those that wait, by priority.
    """

    name: str
    usage: float = 0.0
    since: float = 0.0
    live: int = 0
    waiting: int = 0
    running: list[Sequence] = field(default_factory=list)
    queues: dict[int, list[Place]] = field(default_factory=dict)

    def push(self, seq: Sequence) -> None:
        """Give a sequence that waits a place in its queue; one that it had before is void."""
        seq.ticket += 1
        queue = self.queues.setdefault(seq.priority, [])
        heapq.heappush(queue, (seq.number, seq.ticket, seq))

    def pop(self, now: float, age_s: float, above: int | None = None) -> Sequence | None:
        """Take the most urgent sequence out of its queue; `waiting` still counts it.

        The highest priority goes first. It rises by one level every `age_s` seconds that its first
        sequence has waited.

        Args:
            above: only priorities above this one; None: all.
        """
        best: tuple[float, int] | None = None
        for priority, queue in list(self.queues.items()):
            while queue and not is_valid(queue[0]):
                heapq.heappop(queue)
            if not queue:
                del self.queues[priority]
            elif above is None or priority > above:
                level = priority + (now - queue[0][2].since) // age_s
                best = max(best or (level, priority), (level, priority))
        return None if best is None else heapq.heappop(self.queues[best[1]])[2]

    def tidy(self, priority: int) -> None:
        """After a sequence has left its queue: clear the queue if most of its places are void."""
        queue = self.queues.get(priority, [])
        if len(queue) > 2 * self.waiting + SPARE:
            queue[:] = [place for place in queue if is_valid(place)]
            heapq.heapify(queue)


def is_valid(place: Place) -> bool:
    """Whether a place in a queue is the newest of a sequence that waits."""
    _, ticket, seq = place
    return seq.waiting and ticket == seq.ticket


class Owners:
    """All owners that have a live sequence."""

    def __init__(self) -> None:
        self._live: dict[str, Owner] = {}
        self._gone: dict[str, float] = {}  # usage of those that left while they were ahead

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, name: str) -> Owner:
        return self._live[name]

    def waiting(self, name: str) -> int:
        """How many sequences of an owner wait."""
        owner = self._live.get(name)
        return 0 if owner is None else owner.waiting

    def check_waiting(self, name: str, coming: int, waiting: int, most: int) -> None:
        """See `Scheduler.check_waiting`.

        Args:
            waiting, most: sequences that wait, and may.
        """
        mine = self.waiting(name) + coming
        if waiting + coming < most:
            return
        others = sum(one.waiting > 0 and one.name != name for one in list(self)) + 1
        if mine * others >= most:
            raise Overloaded(f"{most} requests wait already, which is the most; try again later")

    def enter(self, name: str, now: float) -> Owner:
        """The owner of a new sequence.

        One that was away must not have saved up a share, nor have lost count of what it had.
        """
        owner = self._live.get(name)
        if owner is None:
            low = min((one.usage for one in self), default=0.0)
            owner = Owner(name, usage=max(low, self._gone.pop(name, low)), since=now)
            self._live[name] = owner
        owner.live += 1
        return owner

    def leave(self, owner: Owner) -> None:
        """One of its sequences has ended."""
        owner.live -= 1
        if owner.live:
            return
        del self._live[owner.name]
        self._gone[owner.name] = owner.usage
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
        if not self._live:
            self._gone.clear()

    def settle(self, hindered: Collection[Owner]) -> None:
        """After a pass: whoever got all that it wanted has neither lost nor saved up a share.

        Args:
            hindered: owners with a sequence that could not take part.
        """
        if any(owner.waiting and not owner.running for owner in self):
            return  # they take turns with whole places, each by what it has had
        if not hindered:
            self._gone.clear()
        low = min((owner.usage for owner in hindered), default=0.0)
        for owner in self:
            if owner not in hindered:
                owner.usage = max(owner.usage, low) if hindered else 0.0
