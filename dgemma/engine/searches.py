"""The searches that decide on finished canvases, resumed a few steps between two passes.

A search for a closing text can take seconds. Its sequence waits for it; all others make their
steps. It must not know tensors (no torch), grammars, or the use of a result.
"""

from __future__ import annotations

from collections import deque

from dgemma.engine.sequence import Sequence

BUDGET = 1000
"""Steps of all searches together between two passes, some 20 ms. See `dgemma.matcher.Search`."""

SLICE = 64
"""Steps of one search before it is the turn of the next."""


class SearchQueue:
    """The sequences whose search has not ended, in turn."""

    def __init__(self, budget: int) -> None:
        """
        Args:
            budget: steps between two passes; at least one piece of a search is always done.
        """
        self.budget = budget
        self.sequences: deque[Sequence] = deque()

    def advance(self) -> list[Sequence]:
        """Spend the budget. Returns the sequences whose search has ended.

        A search that fails ends its own request. One whose request has ended is dropped.
        """
        left, ended = self.budget, list[Sequence]()
        while self.sequences and left > 0:
            seq = self.sequences.popleft()
            if seq.search is None:  # the request has ended
                continue
            try:
                turn = min(SLICE, left)
                while turn > 0:
                    steps = next(seq.search)
                    turn, left = turn - steps, left - steps
                self.sequences.append(seq)
                continue
            except StopIteration:
                pass
            except Exception as error:
                seq.finish("error", f"{type(error).__name__}: {error}")
            seq.search = None
            ended.append(seq)
        return ended
