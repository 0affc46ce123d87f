"""The times by which sequences must have begun, or ended.

It must not know tensors (no torch), clocks, or the order of sequences.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from dgemma.engine.owners import SPARE
from dgemma.engine.sequence import Sequence


class Deadlines:
    """`Request.deadline_s` and `queue_timeout_s` of all live sequences."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Sequence, bool, str]] = []  # True: only until it starts

    def __len__(self) -> int:
        return len(self._due)

    def add(self, seq: Sequence) -> None:
        """Take those of a sequence; they count from `Sequence.since`, its arrival."""
        request = seq.request
        if request.deadline_s is not None:
            why = f"the deadline of {request.deadline_s} s has passed"
            due = seq.since + request.deadline_s, 2 * seq.number, seq, False, why
            heapq.heappush(self._due, due)
        if request.queue_timeout_s is not None:
            why = f"it has waited longer than {request.queue_timeout_s} s (queue_timeout_s)"
            late = seq.since + request.queue_timeout_s, 2 * seq.number + 1, seq, True, why
            heapq.heappush(self._due, late)

    def passed(self, now: float) -> Iterator[tuple[Sequence, str]]:
        """The sequences that are too late, and why; each once."""
        while self._due and self._due[0][0] <= now:
            _, _, seq, until_start, why = heapq.heappop(self._due)
            started = seq.last >= 0 or not seq.waiting
            if _is_live(seq) and not (started and until_start):
                yield seq, f"{why}; ask again with more time, or when less is running"

    def tidy(self, live: int) -> None:
        """Forget those of ended sequences if they are most of them."""
        if len(self._due) > 2 * live + SPARE:
            self._due = [due for due in self._due if _is_live(due[2])]
            heapq.heapify(self._due)


def _is_live(seq: Sequence) -> bool:
    """Whether a sequence waits or runs."""
    return seq.waiting or seq.block_table is not None
