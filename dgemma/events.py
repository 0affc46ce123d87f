"""The events of one request: a queue between threads, and the stream that its caller reads."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from dgemma.types import Event, Output


class EventQueue:
    """Events of one request in order. One thread puts; each event goes to one of its readers.

    Once it is closed, every reader finds the end, None, however many there are.
    """

    def __init__(self, clock: Callable[[], float] | None = None, began: float = 0.0) -> None:
        """
        Args:
            clock: seconds; every event gets its `t_ms` from it. None: it keeps its own.
            began: when the request arrived, on that clock.
        """
        self._clock, self._began = clock, began
        # Its `put` may be interrupted by another of the same thread (a stream that is collected
        # as garbage), which a lock of our own would not survive.
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._wakes: list[Callable[[], None]] = []  # of the readers that an event loop waits for
        self.closed = False

    def put(self, event: Event) -> None:
        """Append an event."""
        if self._clock is not None:
            event = replace(event, t_ms=1000 * (self._clock() - self._began))
        self._put(event)

    def close(self) -> None:
        """Say that the last event was taken."""
        self.closed = True
        self._put(None)

    def _put(self, event: Event | None) -> None:
        self._events.put(event)
        for wake in tuple(self._wakes):
            wake()

    def take(self) -> Event | None:
        """The next event, or None while there is none, and at the end."""
        with contextlib.suppress(queue.Empty):
            return self._seen(self._events.get_nowait())
        return None

    def wait(self) -> Event | None:
        """The next event, as soon as there is one; None: the end."""
        return self._seen(self._events.get())

    def _seen(self, event: Event | None) -> Event | None:
        if event is None:
            self._put(None)  # for the next reader
        return event

    async def arrival(self) -> Event | None:
        """The next event, as soon as there is one, without holding up the running loop; None: the
        end."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.set)

        self._wakes.append(wake)
        try:
            while (event := self.take()) is None and not self.closed:
                await arrived.wait()
                arrived.clear()
            return event
        finally:
            self._wakes.remove(wake)


class EventStream(Iterator[Event], AsyncIterator[Event]):
    """The events of one request, the last of which is "done"; iterate it with `for` or `async for`.

    Closing it before the end, or dropping it, cancels the request. `with` closes it at the end.
    Several threads or tasks may read it: each event goes to one of them, and all of them end.
    """

    def __init__(
        self,
        events: EventQueue,
        cancel: Callable[[], None],
        step: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            events: of the request.
            cancel: ends the request, so that its "done" event comes; from any thread, any time.
            step: makes progress while there is no event; None: another thread does.
        """
        self._events = events
        self._cancel = cancel
        self._step = step
        self._output: Output | None = None

    def __repr__(self) -> str:
        return f"EventStream({'running' if self._output is None else self._output})"

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __next__(self) -> Event:
        if self._output is not None:
            raise StopIteration
        event = self._events.wait() if self._step is None else self._driven(self._step)
        if event is None:
            raise StopIteration
        return self._seen(event)

    async def __anext__(self) -> Event:
        if self._output is not None:
            raise StopAsyncIteration
        if self._step is None:
            event = await self._events.arrival()
        else:
            event = self._driven(self._step)
        if event is None:
            raise StopAsyncIteration
        return self._seen(event)

    def _driven(self, step: Callable[[], None]) -> Event | None:
        while (event := self._events.take()) is None and not self._events.closed:
            step()
        return event

    def _seen(self, event: Event) -> Event:
        if event.output is not None:
            self._output = event.output
            self._events.close()
        return event

    def close(self) -> None:
        """Cancel the request if it still runs; its "done" event stays to be read."""
        self._cancel()

    def result(self) -> Output:
        """Run to the end and return the answer."""
        for _ in self:
            pass
        assert self._output is not None
        return self._output

    def __del__(self) -> None:
        if self._output is None:
            self.close()  # nobody can read the events any more
