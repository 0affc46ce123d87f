"""The walk of an answer through its grammar, as `diffusion` sees it and `constrain` makes it.

An interface alone. It must not know tensors, canvases or how a grammar is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def completion(self, room: int) -> list[int] | None:
        """At most `room` ids after which the text may end; [] if it may end here.

        None if none were found. Leaves the state as it is.
        """
        ...

    def can_complete(self, room: int) -> bool:
        """Whether `completion` finds at most `room` ids; may be quicker than making them."""
        ...

    def alphabet(self) -> NDArray[np.int32] | None:
        """Bitset of ids that can occur anywhere in a text; None if any id may."""
        ...
