"""The events of one request as text: what the engine tells in ids is read into an answer.

Knows the reader of answers. Knows nothing about the engine beyond the events it is handed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from dgemma.text.answer import AnswerReader
from dgemma.types import Event, Output


class Events(Protocol):
    """The engine's stream of one request."""

    def __next__(self) -> Event:
        """The next event; the last is "done"."""
        ...

    async def __anext__(self) -> Event:
        """The same in an event loop."""
        ...

    def close(self) -> None:
        """Cancel the request if it still runs."""
        ...


Draft = Callable[[Sequence[int]], str]
"""From a frame's ids to its text."""


class Stream:
    """The events of one request; iterate it, plainly or with `async for`; `close` it at any time.

    Closing before the end cancels the request: nothing more is computed for it, and the next (and
    last) event is "done" with finish reason "cancelled".
    """

    def __init__(
        self, events: Events, reader: AnswerReader | None, texts: deque[str], draft: Draft
    ) -> None:
        """`texts` has the text of every commit, in order; see `LLM.submit`."""
        self._events = events
        self._reader = reader
        self._texts = texts
        self._draft = draft
        self._finished = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        if self._finished:
            raise StopIteration
        return self._read_event(next(self._events))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self._finished:
            raise StopAsyncIteration
        return self._read_event(await anext(self._events))

    def _read_event(self, event: Event) -> Event:
        if event.type == "frame":
            return replace(event, text=self._draft(event.ids))
        if event.type == "commit":
            return replace(event, text=self._texts.popleft() if self._texts else "")
        return self._done(event) if event.type == "done" else event

    def _done(self, event: Event) -> Event:
        self._finished = True
        assert event.output is not None
        if self._reader is None:
            return event
        tail = self._reader.finish()
        return replace(event, text=tail, output=self._read(event.output))

    def _read(self, output: Output) -> Output:
        reader = self._reader
        assert reader is not None
        ids = output.token_ids[: reader.kept] if reader.stopped else output.token_ids
        return replace(
            output,
            token_ids=ids,
            scores=output.scores[: len(ids)] if reader.stopped else output.scores,
            usage=replace(output.usage, completion_tokens=len(ids)),
            finish_reason="stop" if reader.stopped else output.finish_reason,
            text=reader.text,
            thinking=reader.thinking or None,
            tool_calls=tuple(reader.tool_calls),
            stopped_by=reader.stopped_by,
        )

    def close(self) -> None:
        """Cancel what is still running; harmless after the end."""
        self._events.close()

    def result(self) -> Output:
        """Run to the end and return the answer."""
        for event in self:
            if event.output is not None:
                return event.output
        raise AssertionError("a stream ends with an output")
