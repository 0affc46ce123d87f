"""What the scheduler deals in: a job, its turn in a pass, a pass.

Knows counts and the pages of a job by their table. (No torch.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dgemma.engine.pages import BlockTable
from dgemma.engine.request import Progress


@dataclass(slots=True, eq=False)
class Job:
    """What the scheduler knows of one request.

    Attributes:
        progress: where the request stands.
        number: order of arrival, from 0.
        since: when it began to wait, in seconds on the engine's clock.
        level: its priority, raised by the time it had waited when it was let in.
        table: its pages while it runs, else None.
        last: number of the pass in which it last took part.
        ticket: which of its places in the queue is the valid one.
    """

    progress: Progress
    number: int = 0
    since: float = 0.0
    level: int = 0
    table: BlockTable | None = None
    last: int = -1
    ticket: int = 0
    waiting: bool = False

    @property
    def priority(self) -> int:
        """Of the request, without ageing."""
        return self.progress.request.priority

    @property
    def owner(self) -> str:
        """Whose request it is."""
        return self.progress.request.owner

    @property
    def rank(self) -> tuple[int, int]:
        """The greatest is the first to be set back."""
        return -self.priority, self.number

    @property
    def room(self) -> int:
        """Positions that its context and the canvas behind it take."""
        return len(self.progress.context) + self.progress.width


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A job's part of a pass.

    Attributes:
        count: tokens of its context that are encoded.
        denoise: whether its canvas makes a step; with `count`, right behind the last of them.
    """

    job: Job
    count: int
    denoise: bool

    @property
    def size(self) -> int:
        """Tokens of the pass."""
        return self.count + (self.job.progress.width if self.denoise else 0)


@dataclass(slots=True)
class StepPlan:
    """A pass, and the jobs that end before it with the reason why."""

    scheduled: list[Scheduled] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
