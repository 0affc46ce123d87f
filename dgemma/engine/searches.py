"""The searches that decide on finished canvases, resumed a few steps between two passes.

A search for a closing text can take seconds. Its sequence waits for it; all others make their
steps. It must not know tensors (no torch), grammars, or the use of a result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from dgemma.engine.sequence import Sequence

BUDGET = 1000
"""Steps of all searches together between two passes, some 20 ms. See `dgemma.matcher.Search`."""

SECONDS = 0.02
"""After so much time no further piece is begun, for a call of the grammar library may take more
than its steps say: a mask of a hostile expression takes a thousand times as long as others."""

SLICE = 64
"""Steps of one search before it is the turn of the next."""


class SearchQueue:
    """The sequences whose search has not ended. Owners take turns, and so do those of an owner."""

    def __init__(self, budget: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            budget: steps between two passes; at least one piece of a search is always done.
            clock: seconds. Neither changes the result of a search.
        """
        self.budget = budget
        self._clock = clock
        self._queues: dict[str, deque[Sequence]] = {}  # of each owner, who is next first

    @property
    def sequences(self) -> list[Sequence]:
        """All of them."""
        return [seq for queue in self._queues.values() for seq in queue]

    def add(self, seq: Sequence) -> None:
        """Take a sequence whose search begins."""
        self._queues.setdefault(seq.owner, deque()).append(seq)

    def discard(self, seq: Sequence) -> None:
        """Drop the search of a request that has ended, if it has one."""
        queue = self._queues.get(seq.owner, deque())
        if seq.search is not None and seq in queue:
            queue.remove(seq)
            if not queue:
                del self._queues[seq.owner]
        seq.search = None

    def clear(self) -> None:
        """Drop all."""
        self._queues.clear()

    def advance(self) -> list[Sequence]:
        """Spend the budget. Returns the sequences whose search has ended.

        A search that fails ends its own request.
        """
        left, ended, until = self.budget, list[Sequence](), self._clock() + SECONDS
        while self._queues and left > 0 and (left == self.budget or self._clock() < until):
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            seq = queue.popleft()
            left -= self._resume(seq, min(SLICE, left), until)
            if seq.search is None:
                ended.append(seq)
            else:
                queue.append(seq)
            if queue:
                self._queues[owner] = queue  # behind the other owners
        return ended

    def _resume(self, seq: Sequence, most: int, until: float) -> int:
        """Go on with one search; the steps that it took, the last piece of all counted as one."""
        assert seq.search is not None
        spent = 0
        try:
            while spent < most and (not spent or self._clock() < until):
                spent += next(seq.search)
            return spent
        except StopIteration:
            pass
        except Exception as error:
            seq.finish("error", f"{type(error).__name__}: {error}")
        seq.search = None
        return spent + 1
