"""The walk of an answer through its grammar, as `diffusion` sees it and `constrain` makes it.

A search for a closing text may take seconds. It is therefore a generator that stops after each
piece: an engine resumes it piece by piece, and other requests step in between. It must not know
tensors, canvases or how a grammar is compiled.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

Search = Generator[int, None, T]
"""Work in pieces: yields the steps of each piece, and returns the result of all.

A step is a look at one symbol, some 20 us. The result does not depend on who resumes it when.
"""

PIECE = 64
"""Ids that are accepted in one call."""

PER_STEP = 8
"""Accepted ids that count as one step."""

MASK_STEPS = 16
"""Steps that a mask over the whole vocabulary counts as, with the choice of a token from it."""


def run_search(search: Search[T]) -> T:
    """Run a search to its end, without a pause."""
    while True:
        try:
            next(search)
        except StopIteration as done:
            result: T = done.value
            return result


def accept_in_pieces(matcher: Matcher, ids: Sequence[int]) -> Search[int]:
    """`Matcher.accept` as a search."""
    taken = 0
    while taken < len(ids):
        piece = ids[taken : taken + PIECE]
        count = matcher.accept(piece)
        taken += count
        yield 1 + len(piece) // PER_STEP
        if count < len(piece):
            break
    return taken


class Matcher(Protocol):
    """The state of an answer in its grammar; every method may raise EngineError."""

    def accept(self, ids: Sequence[int]) -> int:
        """Take as many of these ids as the grammar allows, never an end id; return how many."""
        ...

    def undo(self, count: int) -> None:
        """Take back the last `count` ids."""
        ...

    def allowed(self) -> NDArray[np.int32]:
        """Bitset [ceil(V / 32)]: bit j of word w allows id 32 w + j next. Never end ids.

        If the text that follows is forced, the mask may have the first of `forced` alone, though
        `accept` also takes other tokens that spell the same.
        """
        ...

    @property
    def accepting(self) -> bool:
        """The text may end here."""
        ...

    @property
    def finished(self) -> bool:
        """It must end here: accepting and nothing is allowed."""
        ...

    def forced(self) -> list[int]:
        """Ids that must come next; `accept` takes them all."""
        ...

    def completion(self, room: int) -> Search[list[int] | None]:
        """Search for at most `room` ids after which the text may end; [] if it may end here.

        None if none were found. Leaves the state as it is, once it has ended.
        """
        ...

    def can_complete(self, room: int) -> Search[bool]:
        """Whether `completion` finds at most `room` ids; may be quicker than making them."""
        ...

    def alphabet(self) -> NDArray[np.int32] | None:
        """Bitset of ids that can occur anywhere in a text; None if any id may."""
        ...
