"""The methods of objects that one part makes and another uses. It must not know the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from dgemma.types import Delta, Field, Request, ThoughtIds, ToolCall

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


class Reader:
    """Reads the committed ids of one answer. This one knows no text; what others raise ends their
    request alone.

    Attributes:
        text, thinking, tool_calls: of the deltas so far.
        fields: of the pushed ids, in their order, as far as they are known.
        stopped_by: the stop string that was met, if any; nothing behind it counts.
        kept: how many of the pushed ids belong to the answer: all, unless it was stopped.
    """

    def __init__(self) -> None:
        self.text = self.thinking = ""
        self.tool_calls: list[ToolCall] = []
        self.fields: list[Field] = []
        self.stopped_by: str | None = None
        self.kept = 0

    def push(self, ids: Sequence[int]) -> tuple[Delta, ...]:
        """Read the ids of a commit; see `Event.deltas`."""
        self.kept += len(ids)
        return ()

    def draft(self, ids: Sequence[int]) -> tuple[Delta, ...]:
        """The deltas if the answer ended with these ids, without an unfinished call.

        Changes nothing, and takes as long as these ids alone.
        """
        return ()

    def finish(self) -> tuple[Delta, ...]:
        """End the answer: the deltas that were held back."""
        return ()


class TextSide(Protocol):
    """Makes the parts of a request that work on text; any thread may call it.

    Every method may raise InvalidRequest, MissingExtra or TokenizerError.
    """

    def thought(self, request: Request) -> ThoughtIds | None:
        """The markers of thoughts; None: it is no chat."""
        ...

    def reader(self, request: Request) -> Reader:
        """The reader of the answer."""
        ...

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """A fresh matcher of the answer and the name of its constraint; None: it has none."""
        ...
