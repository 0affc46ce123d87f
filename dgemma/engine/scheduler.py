"""Who takes part in the next model pass: order, fairness, deadlines, and who must step aside.

A waiting request is admitted when there is room in the batch and there are pages for its context
and a canvas. Among the waiting the highest priority goes first; a priority rises by one level every
`age_s` seconds that its oldest request has waited, so nothing waits for ever. Within a priority
owners take turns by the work they have had, within an owner requests go in order of arrival.

When pages run out the running request of the lowest priority, the latest of them, is set back: it
keeps its canvas and loses its pages, which stay cached as long as nobody needs them.

Knows counts, clocks that are handed in, and pages by number. Knows nothing about tensors (no
torch), threads, or what a pass computes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from dgemma.engine.job import Job, Scheduled, StepPlan
from dgemma.engine.pages import Pages
from dgemma.errors import Overloaded
from dgemma.types import PAGE

EXPRESS = 8
"""Most passes in a row that leave out requests for the sake of a higher priority's first frame."""

PREFERENCE = 4
"""A level of priority counts as much as not having taken part in this many passes."""

SPARE = 64
"""Deadlines and places of ended requests that may be kept before they are cleared away."""

RECOVERY = 64
"""After this many passes without trouble the most tokens of a pass are doubled again."""


class Scheduler:
    """All live jobs, waiting or running."""

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
            pages: to be shared out.
            chunk: most prompt tokens of one request in a pass.
            max_running: most requests that hold pages at a time.
            max_tokens: most tokens of a pass (one request may always run).
            max_waiting: most requests that wait; beyond it they are refused.
            age_s: seconds of waiting that count as one level of priority.
        """
        self.pages = pages
        self.chunk = chunk
        self.max_running = max_running
        self.max_tokens = max_tokens
        self.max_waiting = max_waiting
        self.age_s = age_s
        self.running: list[Job] = []
        self.waiting = 0
        self.preemptions = 0
        self.passes = 0
        self._limit = max_tokens
        self._calm = 0  # passes since the last trouble
        self._crowded = False  # pages ran out and nobody has left since
        self._express = 0  # passes in a row that left someone out
        self._numbers = 0
        self._now = 0.0  # of the last pass
        self._queues: dict[tuple[int, str], list[tuple[int, int, Job]]] = {}
        self._live: dict[str, int] = {}  # jobs of each owner
        self._usage: dict[str, float] = {}  # tokens that each live owner's jobs have had
        self._replaceable: dict[tuple[str, str], Job] = {}
        self._due: list[tuple[float, int, Job, bool, str]] = []  # True: only until it starts

    def __len__(self) -> int:
        return len(self.running) + self.waiting

    # -- coming and going ----------------------------------------------------------------------

    def add(self, job: Job, now: float) -> Job | None:
        """Take a job in.

        Returns:
            The older job that this one replaces, which the caller must cancel, or None.
        """
        request = job.progress.request
        job.number, job.since = self._numbers, now
        self._numbers += 1
        older = None
        if request.replaces:
            older = self._replaceable.get((job.owner, request.replaces))
            self._replaceable[job.owner, request.replaces] = job
        if job.owner not in self._live:
            # Whoever was away must not have saved up turns.
            self._usage[job.owner] = min(self._usage.values(), default=0.0)
        self._live[job.owner] = self._live.get(job.owner, 0) + 1
        if request.deadline_s is not None:
            why = f"the deadline of {request.deadline_s} s has passed"
            heapq.heappush(self._due, (now + request.deadline_s, 2 * job.number, job, False, why))
        if request.queue_timeout_s is not None:
            why = f"it has waited longer than {request.queue_timeout_s} s (queue_timeout_s)"
            late = now + request.queue_timeout_s, 2 * job.number + 1, job, True, why
            heapq.heappush(self._due, late)
        self._enqueue(job)
        return older

    def check_waiting(self, coming: int = 0) -> None:
        """Refuse one more request where too many wait; `coming` are on their way.

        Raises:
            Overloaded: they do.
        """
        if self.waiting + coming >= self.max_waiting:
            raise Overloaded(
                f"{self.max_waiting} requests wait already, which is the most; try again later"
            )

    def _enqueue(self, job: Job) -> None:
        job.waiting = True
        job.ticket += 1
        self.waiting += 1
        queue = self._queues.setdefault((job.priority, job.owner), [])
        heapq.heappush(queue, (job.number, job.ticket, job))

    def remove(self, job: Job) -> None:
        """A job has ended: it leaves wherever it is, and gives its pages back."""
        if job.waiting:
            job.waiting = False
            self.waiting -= 1
            queue = self._queues.get((job.priority, job.owner), [])
            if len(queue) > 2 * self.waiting + SPARE:  # most are of jobs that have ended
                queue[:] = [place for place in queue if _valid(place)]
                heapq.heapify(queue)
        else:
            self.running.remove(job)
        if job.table is not None:
            self.pages.close(job.table)
            job.table = None
            self._crowded = False
        if len(self._due) > 2 * len(self) + SPARE:  # most are of jobs that have ended
            self._due = [due for due in self._due if due[2].waiting or due[2].table is not None]
            heapq.heapify(self._due)
        request = job.progress.request
        if self._replaceable.get((job.owner, request.replaces)) is job:
            del self._replaceable[job.owner, request.replaces]
        self._live[job.owner] -= 1
        if not self._live[job.owner]:
            del self._live[job.owner], self._usage[job.owner]

    # -- a pass --------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan:
        """What the next pass computes. Jobs that it names as failed must be removed."""
        plan, self._now = StepPlan(), now
        self._expire(now, plan)
        gone = {id(job) for job, _ in plan.failed}
        for job in sorted(self.running, key=lambda job: job.rank):
            if id(job) not in gone and job.table is not None:
                self._secure(job, plan)
        self._admit(now, plan, gone)
        self._choose(plan)
        self.passes += 1
        self._calm += 1
        if self._calm >= RECOVERY and self._limit < self.max_tokens:
            self._limit, self._calm = min(2 * self._limit, self.max_tokens), 0
        return plan

    def _expire(self, now: float, plan: StepPlan) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, job, until_start, why = heapq.heappop(self._due)
            over = not job.waiting and job.table is None
            started = job.last >= 0 or not job.waiting
            if over or (started and until_start) or any(job is other for other, _ in plan.failed):
                continue
            plan.failed.append((job, f"{why}; ask again with more time, or when less is running"))

    def _next_for(self, job: Job) -> Scheduled:
        """What a job does next.

        A piece of a prompt ends where a page does, see `CachedContext`. With the last piece goes
        the first step of the canvas: its keys are there, layer by layer, when the canvas reads
        them, and the weights are read once for both.
        """
        progress = job.progress
        done, context = progress.encoded, len(progress.context)
        most = min(self.chunk, self._limit)
        whole = (done + most) // PAGE * PAGE - done
        count = min(whole if whole > 0 else most, context - done)
        last = done + count == context and progress.request.mode == "diffusion"
        fits = count == 0 or count + progress.width <= self._limit
        return Scheduled(job, count, denoise=last and fits)

    def _secure(self, job: Job, plan: StepPlan) -> None:
        """See that a running job has the pages for its next turn; others may have to leave."""
        progress, table = job.progress, job.table
        assert table is not None
        end = progress.encoded + self._next_for(job).size
        try:
            while not self.pages.reserve(table, job.room, end):
                victim = max(self.running, key=lambda other: other.rank)
                self.preempt(victim)
                self._crowded = True
                if victim is job:
                    return
        except Exception as error:  # this job's alone
            plan.failed.append((job, f"{type(error).__name__}: {error}"))

    def preempt(self, job: Job) -> None:
        """Set a running job back into the queue. It loses its pages, not its canvas."""
        assert job.table is not None
        self.pages.close(job.table)
        job.table = None
        job.progress.encoded = 0
        self.running.remove(job)
        self.preemptions += 1
        job.since = self._now
        self._enqueue(job)

    def _admit(self, now: float, plan: StepPlan, gone: set[int]) -> None:
        """Let waiting jobs in while there is room.

        Where a job finds none, those behind it wait, too, unless they have a higher priority.
        """
        aside: list[Job] = []
        floor: list[int] = []
        for job in self._waiting_in_order(now, floor):
            aside.append(job)
            if id(job) in gone or self._is_made(job):
                continue
            try:
                if self._let_in(job):
                    aside.pop()
                else:
                    floor.append(job.priority)
            except Exception as error:  # this job's alone
                plan.failed.append((job, f"{type(error).__name__}: {error}"))
        for job in aside:
            self.waiting -= 1
            self._enqueue(job)

    def _waiting_in_order(self, now: float, floor: list[int]) -> Iterator[Job]:
        """Take jobs out of the queues, the most urgent first; `waiting` still counts them.

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
                number, _, job = queue[0]
                heads.setdefault(priority, []).append((self._usage[owner], number, owner))
                oldest[priority] = min(oldest.get(priority, now), job.since)
            if not heads:
                return
            level = {p: p + (now - oldest[p]) // self.age_s for p in heads}
            priority = max(heads, key=lambda p: (level[p], p))
            _, _, owner = min(heads[priority])
            yield heapq.heappop(self._queues[priority, owner])[2]

    def _is_made(self, job: Job) -> bool:
        """Whether a running job of no lower priority makes the very pages that it needs next."""
        if len(self.running) >= self.max_running:
            return False  # no place for it anyway; looking would cost a walk through its prompt
        table = self.pages.computing(job.progress.context)
        return table is not None and any(
            other.table is table and other.priority >= job.priority for other in self.running
        )

    def _let_in(self, job: Job) -> bool:
        """Admit a job, if need be in the place of ones of lower priority."""
        progress = job.progress
        first = min(self.chunk, len(progress.context)) + progress.width  # at most
        table = None
        if not self.running or (len(self.running) < self.max_running and not self._crowded):
            table = self.pages.open(progress.context, job.room, first, progress.reuse)
        if table is None:
            lower = [other for other in self.running if job.priority > other.level]
            tables = [other.table for other in lower if other.table is not None]
            if not lower or not self.pages.could(progress.context, job.room, first, tables):
                assert self.running, "a request that fits alone was not admitted alone"
                return False
            lower.sort(key=lambda other: other.rank)
            while table is None and lower:
                self.preempt(lower.pop())
                table = self.pages.open(progress.context, job.room, first, progress.reuse)
            if table is None:
                return False
        job.waiting = False
        self.waiting -= 1
        job.level = job.priority + int((self._now - job.since) // self.age_s)
        job.table = table
        progress.encoded = len(table.ids)
        self.running.append(job)
        return True

    def _choose(self, plan: StepPlan) -> None:
        """Fill the pass."""
        gone = {id(job) for job, _ in plan.failed}
        jobs = [job for job in self.running if id(job) not in gone]
        fresh = [job.priority for job in jobs if job.progress.steps == 0]
        chosen = [job for job in jobs if job.priority >= max(fresh, default=0)]
        if fresh and len(chosen) < len(jobs) and self._express < EXPRESS:
            self._express += 1
            jobs = chosen
        else:
            self._express = 0
        tokens = 0
        for job in sorted(jobs, key=lambda job: (job.last - PREFERENCE * job.priority, job.number)):
            scheduled = self._next_for(job)
            if plan.scheduled and tokens + scheduled.size > self._limit:
                continue
            tokens += scheduled.size
            job.last = self.passes
            self._usage[job.owner] += scheduled.size
            plan.scheduled.append(scheduled)

    def encoded(self, job: Job, count: int) -> None:
        """A job's tokens are in its pages now."""
        progress, table = job.progress, job.table
        assert table is not None
        self.pages.encoded(table, progress.context[progress.encoded : progress.encoded + count])
        progress.encoded += count

    def shrink(self, tokens: int) -> None:
        """A pass of so many tokens was too much: the next ones have half as many at most."""
        self._limit, self._calm = max(1, min(self._limit, tokens) // 2), 0

    @property
    def limit(self) -> int:
        """Most tokens of a pass at present."""
        return self._limit

    def check(self) -> None:
        """Every job is in one place and every count is what it counts.

        Raises:
            AssertionError: a mistake of this file.
        """
        self.pages.check()
        queued = [
            job
            for queue in self._queues.values()
            for _, ticket, job in queue
            if _valid((0, ticket, job))
        ]
        assert len(queued) == self.waiting == len(set(map(id, queued)))
        assert all(job.table is None for job in queued)
        assert all(not job.waiting and job.table is not None for job in self.running)
        assert {id(job.table) for job in self.running} == {id(t) for t in self.pages.tables}
        assert len(self.running) <= self.max_running
        for job in self.running:
            assert job.table is not None and len(job.table.ids) == job.progress.encoded
        assert sum(self._live.values()) == len(self)
        assert set(self._usage) == set(self._live)


def _valid(place: tuple[int, int, Job]) -> bool:
    """Whether a place in a queue is that of a job which waits, and its newest."""
    _, ticket, job = place
    return job.waiting and ticket == job.ticket
