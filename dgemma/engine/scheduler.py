"""Which sequences take part in the next pass: order, fairness, deadlines, preemption.

A waiting sequence is admitted when there is room in the batch and there are pages for its context
and a canvas. The highest priority goes first; a priority rises by one level every `age_s` seconds
that its oldest sequence has waited, so nothing waits for ever. Within a priority owners alternate
by the tokens they have had, within an owner sequences go in order of arrival.

When pages run out, the scheduler preempts the running sequence of the lowest priority, the latest
of them: it keeps its canvas and loses its pages, which stay cached as long as nobody needs them.

It must not know tensors (no torch), threads or clocks; the time is handed in.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from dgemma.engine.pages import Pages
from dgemma.engine.sequence import Sequence
from dgemma.errors import Overloaded
from dgemma.types import PAGE

EXPRESS = 8
"""Most passes in a row that leave out sequences for the sake of a higher priority's first frame."""

PREFERENCE = 4
"""A level of priority counts as much as not having taken part in this many passes."""

PATIENCE = 8
"""After so many passes a sequence that waits for its search may lose its place to any other."""

SPARE = 64
"""Deadlines and places of ended sequences that are kept before they are cleared away."""

RECOVERY = 64
"""After this many passes without trouble the most tokens of a pass are doubled again."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence's part of a pass.

    Attributes:
        count: tokens of its context that are encoded.
        denoise: whether its canvas makes a step; with `count`, right after the last of them.
    """

    sequence: Sequence
    count: int
    denoise: bool

    @property
    def size(self) -> int:
        """Tokens of the pass."""
        return self.count + (self.sequence.width if self.denoise else 0)


@dataclass(slots=True)
class StepPlan:
    """A pass, and the sequences that end before it with the reason why."""

    scheduled: list[Scheduled] = field(default_factory=list)
    failed: dict[Sequence, str] = field(default_factory=dict)


class Scheduler:
    """All live sequences, waiting or running."""

    def __init__(
        self,
        pages: Pages,
        *,
        chunk: int,
        max_running: int = 32,
        max_tokens: int = 8192,
        max_waiting: int = 1024,
        age_s: float = 30.0,
    ) -> None:
        """
        Args:
            pages: to give out.
            chunk: most prompt tokens of one sequence in a pass.
            max_running: most sequences that hold pages at a time.
            max_tokens: most tokens of a pass (one sequence may always run).
            max_waiting: most sequences that wait; beyond it requests are refused.
            age_s: seconds of waiting that count as one level of priority.
        """
        self.pages = pages
        self.chunk = chunk
        self.max_running = max_running
        self.max_tokens = max_tokens
        self.max_waiting = max_waiting
        self.age_s = age_s
        self.running: list[Sequence] = []
        self.waiting = 0
        self.preemptions = 0
        self.passes = 0
        self.limit = max_tokens  # most tokens of a pass at present
        self._calm = 0  # passes since the last trouble
        self._crowded = False  # pages ran out and nobody has left since
        self._express = 0  # passes in a row that left someone out
        self._numbers = 0
        self._now = 0.0  # of the last pass
        self._queues: dict[tuple[int, str], list[tuple[int, int, Sequence]]] = {}
        self._owned: dict[str, int] = {}  # live sequences of each owner
        self._usage: dict[str, float] = {}  # tokens that each live owner's sequences have had
        self._replaceable: dict[tuple[str, str], Sequence] = {}
        self._due: list[tuple[float, int, Sequence, bool, str]] = []  # True: only until it starts

    def __len__(self) -> int:
        return len(self.running) + self.waiting

    # -- coming and going ----------------------------------------------------------------------

    def add(self, seq: Sequence, now: float) -> Sequence | None:
        """Queue a sequence.

        Returns:
            The older sequence that this one replaces, which the caller must cancel, or None.
        """
        request = seq.request
        seq.number, seq.since = self._numbers, now
        self._numbers += 1
        older = None
        if request.replaces:
            older = self._replaceable.get((seq.owner, request.replaces))
            self._replaceable[seq.owner, request.replaces] = seq
        if seq.owner not in self._owned:
            # An owner that was away must not have saved up work.
            self._usage[seq.owner] = min(self._usage.values(), default=0.0)
        self._owned[seq.owner] = self._owned.get(seq.owner, 0) + 1
        if request.deadline_s is not None:
            why = f"the deadline of {request.deadline_s} s has passed"
            heapq.heappush(self._due, (now + request.deadline_s, 2 * seq.number, seq, False, why))
        if request.queue_timeout_s is not None:
            why = f"it has waited longer than {request.queue_timeout_s} s (queue_timeout_s)"
            late = now + request.queue_timeout_s, 2 * seq.number + 1, seq, True, why
            heapq.heappush(self._due, late)
        self._enqueue(seq)
        return older

    def check_waiting(self, coming: int = 0) -> None:
        """Refuse one more request if too many wait; `coming` are on their way.

        Raises:
            Overloaded: too many wait.
        """
        if self.waiting + coming >= self.max_waiting:
            raise Overloaded(
                f"{self.max_waiting} requests wait already, which is the most; try again later"
            )

    def _enqueue(self, seq: Sequence) -> None:
        seq.waiting = True
        seq.ticket += 1
        self.waiting += 1
        queue = self._queues.setdefault((seq.priority, seq.owner), [])
        heapq.heappush(queue, (seq.number, seq.ticket, seq))

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence that has ended, and give its pages back."""
        if seq.waiting:
            seq.waiting = False
            self.waiting -= 1
            queue = self._queues.get((seq.priority, seq.owner), [])
            if len(queue) > 2 * self.waiting + SPARE:  # most have ended
                queue[:] = [place for place in queue if _valid(place)]
                heapq.heapify(queue)
        else:
            self.running.remove(seq)
        if seq.block_table is not None:
            self.pages.close(seq.block_table)
            seq.block_table = None
            self._crowded = False
        if len(self._due) > 2 * len(self) + SPARE:  # most have ended
            self._due = [due for due in self._due if _is_live(due[2])]
            heapq.heapify(self._due)
        request = seq.request
        if self._replaceable.get((seq.owner, request.replaces)) is seq:
            del self._replaceable[seq.owner, request.replaces]
        self._owned[seq.owner] -= 1
        if not self._owned[seq.owner]:
            del self._owned[seq.owner], self._usage[seq.owner]

    # -- a pass --------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan:
        """The next pass. The caller must remove the sequences that it names as failed."""
        plan, self._now = StepPlan(), now
        self._expire(now, plan)
        for seq in sorted(self.running, key=lambda seq: seq.rank):
            if seq not in plan.failed and seq.block_table is not None and seq.search is None:
                self._secure(seq, plan)
        self._admit(now, plan)
        self._choose(plan)
        self.passes += 1
        self._calm += 1
        if self._calm >= RECOVERY and self.limit < self.max_tokens:
            self.limit, self._calm = min(2 * self.limit, self.max_tokens), 0
        return plan

    def _expire(self, now: float, plan: StepPlan) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, seq, until_start, why = heapq.heappop(self._due)
            started = seq.last >= 0 or not seq.waiting
            if _is_live(seq) and not (started and until_start):
                plan.failed.setdefault(
                    seq, f"{why}; ask again with more time, or when less is running"
                )

    def _next_for(self, seq: Sequence) -> Scheduled:
        """The next part of a sequence.

        A piece of a prompt ends at the end of a page, see `ReferenceAttention`. The last piece runs
        together with the first step of the canvas: its keys are there, layer by layer, when the
        canvas reads them, and the weights are read once for both.
        """
        done, context = seq.encoded, len(seq.context)
        most = min(self.chunk, self.limit)
        whole = (done + most) // PAGE * PAGE - done
        count = min(whole if whole > 0 else most, context - done)
        last = done + count == context and seq.request.mode == "diffusion"
        fits = count == 0 or count + seq.width <= self.limit
        return Scheduled(seq, count, denoise=last and fits)

    def _secure(self, seq: Sequence, plan: StepPlan) -> None:
        """Give a running sequence the pages of its next part; it may preempt others, or itself."""
        table = seq.block_table
        assert table is not None
        end = seq.encoded + self._next_for(seq).size
        try:
            while not self.pages.reserve(table, seq.positions, end):
                victim = max(self.running, key=lambda other: other.rank)
                self.preempt(victim)
                self._crowded = True
                if victim is seq:
                    return
        except Exception as error:  # of this sequence alone
            plan.failed[seq] = f"{type(error).__name__}: {error}"

    def preempt(self, seq: Sequence) -> None:
        """Put a running sequence back into the queue. It loses its pages, not its canvas."""
        assert seq.block_table is not None
        self.pages.close(seq.block_table)
        seq.block_table = None
        seq.encoded = 0
        self.running.remove(seq)
        self.preemptions += 1
        seq.since = self._now
        self._enqueue(seq)

    def _admit(self, now: float, plan: StepPlan) -> None:
        """Admit waiting sequences while there is room.

        If one finds none, those after it wait too, unless they have a higher priority.
        """
        aside: list[Sequence] = []
        floor: list[int] = []
        for seq in self._waiting_in_order(now, floor):
            aside.append(seq)
            if seq in plan.failed or seq.search is not None or self._is_computed(seq):
                continue
            try:
                if self._try_admit(seq):
                    aside.pop()
                else:
                    floor.append(seq.priority)
            except Exception as error:  # of this sequence alone
                plan.failed[seq] = f"{type(error).__name__}: {error}"
        for seq in aside:
            self.waiting -= 1
            self._enqueue(seq)

    def _waiting_in_order(self, now: float, floor: list[int]) -> Iterator[Sequence]:
        """Take sequences out of the queues, the most urgent first; `waiting` still counts them.

        Only priorities above all of `floor`, which may grow on the way.
        """
        while True:
            heads: dict[int, list[tuple[float, int, str]]] = {}
            oldest: dict[int, float] = {}
            for (priority, owner), queue in list(self._queues.items()):
                while queue and not _valid(queue[0]):
                    heapq.heappop(queue)
                if not queue:
                    del self._queues[priority, owner]
                    continue
                if floor and priority <= max(floor):
                    continue
                number, _, seq = queue[0]
                heads.setdefault(priority, []).append((self._usage[owner], number, owner))
                oldest[priority] = min(oldest.get(priority, now), seq.since)
            if not heads:
                return
            level = {p: p + (now - oldest[p]) // self.age_s for p in heads}
            priority = max(heads, key=lambda p: (level[p], p))
            _, _, owner = min(heads[priority])
            yield heapq.heappop(self._queues[priority, owner])[2]

    def _is_computed(self, seq: Sequence) -> bool:
        """Whether a running sequence of no lower priority computes the pages it needs next."""
        if len(self.running) >= self.max_running:
            return False  # no place for it anyway; looking would cost a walk through its prompt
        table = self.pages.computing(seq.prefix)
        return table is not None and any(
            other.block_table is table and other.priority >= seq.priority for other in self.running
        )

    def _try_admit(self, seq: Sequence) -> bool:
        """Admit a sequence, if need be in the place of idle ones, or of lower priority."""
        first = min(self.chunk, len(seq.context)) + seq.width  # at most
        table = None
        if not self.running or (len(self.running) < self.max_running and not self._crowded):
            table = self.pages.open(seq.prefix, seq.positions, first, seq.reuse)
        if table is None:
            lower = [other for other in self.running
                     if seq.priority > other.level or self._is_idle(other)]  # fmt: skip
            tables = [other.block_table for other in lower if other.block_table is not None]
            if not lower or not self.pages.could(seq.prefix, seq.positions, first, tables):
                assert self.running, "a sequence that fits alone was not admitted alone"
                return False
            lower.sort(key=lambda other: other.rank)
            while table is None and lower:
                self.preempt(lower.pop())
                table = self.pages.open(seq.prefix, seq.positions, first, seq.reuse)
            if table is None:
                return False
        seq.waiting = False
        self.waiting -= 1
        seq.level = seq.priority + int((self._now - seq.since) // self.age_s)
        seq.block_table = table
        seq.encoded = len(table.ids)
        self.running.append(seq)
        return True

    def _is_idle(self, seq: Sequence) -> bool:
        """Whether a running sequence has long taken part in no pass, for the sake of its search."""
        return seq.search is not None and self.passes - seq.last > PATIENCE

    def _choose(self, plan: StepPlan) -> None:
        """Fill the pass. A sequence whose canvas is being decided on waits, with its pages."""
        sequences = [s for s in self.running if s not in plan.failed and s.search is None]
        fresh = [seq.priority for seq in sequences if seq.steps == 0]
        chosen = [seq for seq in sequences if seq.priority >= max(fresh, default=0)]
        if fresh and len(chosen) < len(sequences) and self._express < EXPRESS:
            self._express += 1
            sequences = chosen
        else:
            self._express = 0
        tokens = 0
        sequences.sort(key=lambda seq: (seq.last - PREFERENCE * seq.priority, seq.number))
        for seq in sequences:
            scheduled = self._next_for(seq)
            if plan.scheduled and tokens + scheduled.size > self.limit:
                continue
            tokens += scheduled.size
            seq.last = self.passes
            self._usage[seq.owner] += scheduled.size
            plan.scheduled.append(scheduled)

    def encoded(self, seq: Sequence, count: int) -> None:
        """Record that the next `count` tokens of a sequence are in its pages."""
        table = seq.block_table
        assert table is not None
        self.pages.encoded(table, seq.context[seq.encoded : seq.encoded + count])
        seq.encoded += count

    def shrink(self, tokens: int) -> None:
        """After a pass of so many tokens ran out of memory: allow at most half as many."""
        self.limit, self._calm = max(1, min(self.limit, tokens) // 2), 0


def _is_live(seq: Sequence) -> bool:
    """Whether a sequence waits or runs."""
    return seq.waiting or seq.block_table is not None


def _valid(place: tuple[int, int, Sequence]) -> bool:
    """Whether a place in a queue is the newest of a sequence that waits."""
    _, ticket, seq = place
    return seq.waiting and ticket == seq.ticket
