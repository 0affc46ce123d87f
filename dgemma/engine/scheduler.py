"""Which sequences take part in the next pass: order, shares, deadlines, preemption.

A waiting sequence is admitted when there is room in the batch and there are pages for its context
and a canvas. Within an owner the highest priority goes first; a priority rises by one level every
`age_s` seconds that its oldest sequence has waited, so nothing waits for ever; within a priority
sequences go in order of arrival. Priorities of different owners are not compared.

Owners share places, pages and passes:

    places   An owner without a place gets one at once from an owner with several. If no owner has
             several, it gets the place of a sequence that has finished a canvas since it was
             admitted, of an owner that has had as much. Owners that run even out their places in
             the same way.
    pages    When pages run out, the owner that has most of them gives some back.
    passes   Each owner may put as many tokens into a pass as the one that has fewest to run, or
             its part of `shared` tokens. Prompts stay in small pieces for a while after.

A sequence that gives way is preempted: it keeps its canvas and loses its pages, which stay cached
as long as nobody needs them. Of an owner's sequences the lowest priority goes first, the latest of
them.

It must not know tensors (no torch), threads or clocks; the time is handed in.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from dgemma.engine.deadlines import Deadlines
from dgemma.engine.owners import Owner, Owners
from dgemma.engine.pages import Pages
from dgemma.engine.places import giving_way, victim
from dgemma.engine.plan import Scheduled, StepPlan
from dgemma.engine.sequence import Sequence
from dgemma.types import PAGE

EXPRESS = 8
"""Most passes in a row that leave out sequences for the sake of a higher priority's first frame."""

PREFERENCE = 4
"""A level of priority counts as much as not having taken part in this many passes."""

PATIENCE = 8
"""After so many passes a sequence that waits for its search may lose its place to any other."""

SOON = 16
"""For so many passes after two owners shared one, the other is expected back."""

RECOVERY = 64
"""After this many passes without trouble the most tokens of a pass are doubled again."""


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
        shared: int = 4 * PAGE,
    ) -> None:
        """
        Args:
            pages: to give out.
            chunk: most prompt tokens of one sequence in a pass.
            max_running: most sequences that hold pages at a time.
            max_tokens: most tokens of a pass (one sequence may always run).
            max_waiting: most sequences that wait; beyond it requests are refused, but for those of
                an owner with less than its part of them.
            age_s: seconds of waiting that count as one level of priority, and after which an owner
                without a place goes before those that have had less.
            shared: tokens of a pass that owners divide evenly, though one has fewer to run. The
                most at which a pass is hardly slower than one of a single sequence.
        """
        self.pages = pages
        self.chunk = chunk
        self.max_running = max_running
        self.max_tokens = max_tokens
        self.max_waiting = max_waiting
        self.age_s = age_s
        self.shared = shared
        self.running: list[Sequence] = []
        self.waiting = 0
        self.preemptions = 0
        self.passes = 0
        self.limit = max_tokens  # most tokens of a pass at present
        self._calm = 0  # passes since the last trouble
        self._crowded = False  # pages ran out and nobody has left since
        self._express = 0  # passes in a row that left someone out
        self._together = -SOON - 1  # the last pass with several owners
        self._numbers = 0
        self._now = 0.0  # of the last pass
        self.owners = Owners()
        self._replaceable: dict[tuple[str, str], Sequence] = {}
        self._deadlines = Deadlines()

    def __len__(self) -> int:
        return len(self.running) + self.waiting

    # -- coming and going ----------------------------------------------------------------------

    def add(self, seq: Sequence, now: float) -> Sequence | None:
        """Queue a sequence.

        Returns:
            The older sequence that this one replaces, which the caller must cancel, or None.
        """
        request = seq.request
        seq.number, seq.since = self._numbers, now if seq.arrived is None else seq.arrived
        self._numbers += 1
        older = None
        if request.replaces:
            older = self._replaceable.get((seq.owner, request.replaces))
            self._replaceable[seq.owner, request.replaces] = seq
        self._deadlines.add(seq)
        self._enqueue(seq, self.owners.enter(seq.owner, now))
        return older

    def check_waiting(self, owner: str = "", coming: int = 0) -> None:
        """Refuse one more request of an owner if too many wait.

        When the queue is full, an owner may still have its part of it waiting.

        Args:
            coming: requests of this owner that are on their way and wait soon.

        Raises:
            Overloaded: too many wait.
        """
        self.owners.check_waiting(owner, coming, self.waiting, self.max_waiting)

    def _enqueue(self, seq: Sequence, owner: Owner) -> None:
        seq.waiting = True
        self.waiting += 1
        owner.waiting += 1
        owner.push(seq)

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence that has ended, and give its pages back."""
        owner = self.owners[seq.owner]
        if seq.waiting:
            seq.waiting = False
            self.waiting -= 1
            owner.waiting -= 1
            owner.tidy(seq.priority)
        else:
            self._stop(seq, owner)
            self._crowded = False
        self._deadlines.tidy(len(self))
        request = seq.request
        if self._replaceable.get((seq.owner, request.replaces)) is seq:
            del self._replaceable[seq.owner, request.replaces]
        self.owners.leave(owner)

    def _stop(self, seq: Sequence, owner: Owner) -> None:
        """Take a running sequence's pages and its place."""
        assert seq.block_table is not None
        self.pages.close(seq.block_table)
        seq.block_table = None
        self.running.remove(seq)
        owner.running.remove(seq)
        owner.since = self._now

    # -- a pass --------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan:
        """The next pass. The caller must remove the sequences that it names as failed."""
        plan, self._now = StepPlan(), now
        for seq, why in self._deadlines.passed(now):
            plan.failed.setdefault(seq, why)
        for seq in self.running:
            if seq.block_table is not None and seq.rows <= len(seq.block_table.forks):
                self.pages.fork(seq.block_table, seq.positions, seq.rows)  # its race is over
        for seq in sorted(self.running, key=lambda seq: seq.rank):
            if seq not in plan.failed and seq.block_table is not None and seq.search is None:
                self._secure(seq, plan)
        self._admit(plan)
        self._choose(plan)
        self.passes += 1
        self._calm += 1
        if self._calm >= RECOVERY and self.limit < self.max_tokens:
            self.limit, self._calm = min(2 * self.limit, self.max_tokens), 0
        return plan

    def _next_for(self, seq: Sequence, portion: float = math.inf) -> Scheduled:
        """The next part of a sequence, its piece of a prompt at most `portion` or a page.

        A piece of a prompt ends at the end of a page, see `ReferenceAttention`. The last piece runs
        together with the first step of the canvas: its keys are there, layer by layer, when the
        canvas reads them, and the weights are read once for both. Not so that of a race, whose
        canvases read a copy of the last block.
        """
        done, context = seq.encoded, len(seq.context)
        if seq.proposed and done == context:
            return Scheduled(seq, len(seq.proposed), denoise=False, reading=True)
        most = min(self.chunk, self.limit)
        if portion < most:
            most = max(PAGE, int(portion))
        whole = (done + most) // PAGE * PAGE - done
        count = min(whole if whole > 0 else most, context - done)
        last = done + count == context and seq.denoises
        fits = count == 0 or (seq.rows == 1 and count + seq.width <= self.limit)
        return Scheduled(seq, count, denoise=last and fits)

    def _secure(self, seq: Sequence, plan: StepPlan) -> None:
        """Give a running sequence the pages of its next part.

        If there are none, the owner that holds most preempts one of its sequences, perhaps this.
        """
        table = seq.block_table
        assert table is not None
        room, end = seq.positions, seq.encoded + self._next_for(seq).reach
        try:
            while not (
                self.pages.reserve(table, room, end) and self.pages.fork(table, room, seq.rows)
            ):
                going = victim(self.owners)
                self.preempt(going)
                self._crowded = True
                if going is seq:
                    return
        except Exception as error:  # of this sequence alone
            plan.failed[seq] = f"{type(error).__name__}: {error}"

    def preempt(self, seq: Sequence) -> None:
        """Put a running sequence back into the queue. It loses its pages, not its canvas."""
        owner = self.owners[seq.owner]
        self._stop(seq, owner)
        seq.encoded = 0
        self.preemptions += 1
        seq.since = self._now
        self._enqueue(seq, owner)

    def _admit(self, plan: StepPlan) -> None:
        """Admit waiting sequences while there is room.

        If one finds none, those of its owner after it wait too, unless they have a higher priority.
        """
        floors: dict[Owner, int] = {}
        aside: list[tuple[Sequence, Owner]] = []
        ready = [owner for owner in self.owners if owner.waiting]
        while ready:
            owner = min(ready, key=self._turn)
            seq = owner.pop(self._now, self.age_s, floors.get(owner))
            if seq is None:
                ready.remove(owner)
                continue
            aside.append((seq, owner))
            if seq in plan.failed or seq.search is not None or self._is_computed(seq):
                continue
            try:
                if self._try_admit(seq, owner):
                    aside.pop()
                else:
                    floors[owner] = max(seq.priority, floors.get(owner, seq.priority))
            except Exception as error:  # of this sequence alone
                plan.failed[seq] = f"{type(error).__name__}: {error}"
        for seq, owner in aside:
            owner.push(seq)

    def _turn(self, owner: Owner) -> tuple[int, bool, float]:
        """The owner with the least is the next to get a place that is free."""
        return len(owner.running), not self._is_late(owner), owner.usage

    def _is_late(self, owner: Owner) -> bool:
        """Whether an owner has gone without a place for long."""
        return not owner.running and self._now - owner.since > self.age_s

    def _is_computed(self, seq: Sequence) -> bool:
        """Whether another of its owner, of no lower priority, computes the pages it needs next."""
        if len(self.running) >= self.max_running:
            return False  # no place for it anyway; looking would cost a walk through its prompt
        table = self.pages.computing(seq.prefix)
        return table is not None and any(
            other.block_table is table and other.priority >= seq.priority
            for other in self.owners[seq.owner].running
        )

    def _try_admit(self, seq: Sequence, owner: Owner) -> bool:
        """Admit a sequence, if need be in the place of others that must give way."""
        first = min(self.chunk, len(seq.context)) + seq.width  # at most
        full = len(self.running) >= self.max_running
        table = None
        if not full and not (self._crowded and owner.running):
            table = self.pages.open(seq.prefix, seq.positions, first, seq.reuse, seq.rows)
        if table is None:
            going = [other for other in self.running if self._is_below(other, seq)]
            going.sort(key=lambda other: other.rank, reverse=True)
            late = self._is_late(owner)
            going += [
                other for other in giving_way(seq, owner, self.owners, full=full, late=late)
                if other not in going
            ]  # fmt: skip
            tables = [other.block_table for other in going if other.block_table is not None]
            need = seq.prefix, seq.positions, first
            if not going or not self.pages.could(*need, tables, seq.rows):
                assert self.running, "a sequence that fits alone was not admitted alone"
                return False
            for other in going:
                self.preempt(other)
                table = self.pages.open(*need, seq.reuse, seq.rows)
                if table is not None:
                    break
            else:
                return False
        seq.waiting = False
        self.waiting -= 1
        owner.waiting -= 1
        seq.level = seq.priority + int((self._now - seq.since) // self.age_s)
        seq.block_table = table
        seq.encoded = len(table.ids)
        seq.begun = len(seq.context)
        self.running.append(seq)
        owner.running.append(seq)
        return True

    def _is_below(self, running: Sequence, seq: Sequence) -> bool:
        """Whether a running sequence gives way to one that waits, whatever their owners have."""
        own = running.owner == seq.owner and seq.priority > running.level
        return own or self._is_idle(running)

    def _is_idle(self, seq: Sequence) -> bool:
        """Whether a running sequence has long taken part in no pass, for the sake of its search."""
        return seq.search is not None and self.passes - seq.last > PATIENCE

    def _choose(self, plan: StepPlan) -> None:
        """Fill the pass. A sequence whose canvas is being decided on waits, with its pages."""
        rows = self._by_owner(plan)
        portion = self._portion(rows)
        piece = min(portion, self.shared if self.passes - self._together <= SOON else math.inf)
        low = min((owner.usage for owner in rows), default=0.0)
        order = [(owner.usage, number, owner) for number, owner in enumerate(rows)]
        heapq.heapify(order)
        hindered = {owner for owner in self.owners if owner.waiting}
        tokens = 0
        while order:
            usage, number, owner = heapq.heappop(order)
            if usage >= low + portion:
                hindered.add(owner)
                continue
            seq = rows[owner].popleft()
            scheduled = self._next_for(seq, piece)
            if plan.scheduled and tokens + scheduled.size > self.limit:
                hindered.add(owner)
            else:
                tokens += scheduled.size
                seq.last = self.passes
                owner.usage += scheduled.size
                plan.scheduled.append(scheduled)
            if rows[owner]:
                heapq.heappush(order, (owner.usage, number, owner))
        self.owners.settle(hindered)

    def _by_owner(self, plan: StepPlan) -> dict[Owner, deque[Sequence]]:
        """The sequences that may take part, those of each owner in their order.

        Until the first frame of one, those of the same owner and a lower priority are left out.
        """
        sequences = [s for s in self.running if s not in plan.failed and s.search is None]
        fresh: dict[str, int] = {}
        for seq in sequences:
            if seq.steps == 0:
                fresh[seq.owner] = max(seq.priority, fresh.get(seq.owner, seq.priority))
        chosen = [s for s in sequences if s.priority >= fresh.get(s.owner, s.priority)]
        if len(chosen) < len(sequences) and self._express < EXPRESS:
            self._express += 1
            sequences = chosen
        else:
            self._express = 0
        sequences.sort(key=lambda seq: (seq.last - PREFERENCE * seq.priority, seq.number))
        rows: dict[Owner, deque[Sequence]] = {}
        for seq in sequences:
            rows.setdefault(self.owners[seq.owner], deque()).append(seq)
        return rows

    def _portion(self, rows: dict[Owner, deque[Sequence]]) -> float:
        """How many tokens an owner may be ahead of the others in a pass."""
        if len(rows) < 2:
            return math.inf
        self._together = self.passes
        fewest = min(sum(self._next_for(seq).size for seq in own) for own in rows.values())
        return max(fewest, self.shared / len(rows))

    def encoded(self, seq: Sequence, count: int) -> None:
        """Record that the next `count` tokens of a sequence are in its pages."""
        table = seq.block_table
        assert table is not None
        self.pages.encoded(table, seq.context[seq.encoded : seq.encoded + count])
        seq.encoded += count

    def shrink(self, tokens: int) -> None:
        """After a pass of so many tokens ran out of memory: allow at most half as many."""
        self.limit, self._calm = max(1, min(self.limit, tokens) // 2), 0
