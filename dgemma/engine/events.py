"""The way of events from the thread that makes them to whoever waits, in a thread or in a loop.

Knows nothing about what an event is. (No torch.)
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable

from dgemma.types import Event


class EventQueue:
    """Events of one request in order. One thread puts, one reader takes."""

    def __init__(self) -> None:
        # Its `put` may be interrupted by another of the same thread (a stream that is collected
        # as garbage), which a lock of our own would not survive.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None

    def put(self, event: Event) -> None:
        """Append an event."""
        self._events.put(event)
        wake = self._wake
        if wake is not None:
            wake()

    def take(self) -> Event | None:
        """The next event, or None while there is none."""
        with contextlib.suppress(queue.Empty):
            return self._events.get_nowait()
        return None

    def wait(self) -> Event:
        """The next event, as soon as there is one."""
        return self._events.get()

    async def arrival(self) -> Event:
        """The next event, as soon as there is one, without holding up the running loop."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.set)

        self._wake = wake
        try:
            while (event := self.take()) is None:
                await arrived.wait()
                arrived.clear()
            return event
        finally:
            if self._wake is wake:  # else another reader has come after this one was cancelled
                self._wake = None
