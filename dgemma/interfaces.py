"""The methods of objects that one part makes and another uses. It must not know the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dgemma.matcher import Matcher
from dgemma.request_parts import ThoughtIds
from dgemma.types import Delta, Field, InvalidToolCall, Request, ToolCall


class Reader:
    """Reads the committed ids of one answer. This one knows no text; what others raise ends their
    request alone.

    Attributes:
        text, thinking, tool_calls, invalid_tool_calls: of the deltas so far.
        fields: of the pushed ids, in their order, as far as they are known.
        stopped_by: the stop string that was met, if any; nothing behind it counts.
        kept: how many of the pushed ids belong to the answer: all, unless it was stopped.
    """

    def __init__(self) -> None:
        self.text = self.thinking = ""
        self.tool_calls: list[ToolCall] = []
        self.invalid_tool_calls: list[InvalidToolCall] = []
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

    def common(self, request: Request) -> int:
        """How many of the prompt's first ids the chat template itself writes, whoever asks."""
        ...

    def closed(self, request: Request) -> tuple[Request, bool]:
        """The request as the model reads it, and whether the last turn of its prompt begins with
        an empty thought that the chat template leaves to the model."""
        ...

    def thought(self, request: Request) -> ThoughtIds | None:
        """The markers of thoughts; None: it is no chat."""
        ...

    def reader(self, request: Request) -> Reader:
        """The reader of the answer."""
        ...

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """A fresh matcher of the answer and the name of its constraint; None: it has none."""
        ...
