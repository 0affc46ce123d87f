"""The events of one request, for a loop that is plain or asynchronous.

Knows nothing about who makes them. (No torch of its own.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from dgemma.engine.row import Row
from dgemma.types import Event


class Driver(Protocol):
    """Who runs the request: an engine that is driven by those who wait, or a worker."""

    def next_event(self, row: Row) -> Event:
        """The row's next event, as soon as there is one."""
        ...

    async def arrival(self, row: Row) -> Event:
        """The same for an event loop."""
        ...

    def cancel(self, row: Row) -> None:
        """End the row; its "done" event comes. Any thread may call it, at any time."""
        ...


class EventStream(Iterator[Event], AsyncIterator[Event]):
    """Iterate for events, the last of which is "done". Closing or dropping it cancels."""

    def __init__(self, driver: Driver, row: Row) -> None:
        self._driver = driver
        self._row = row
        self._over = False

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        event = self._driver.next_event(self._row)
        self._over = event.type == "done"
        return event

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        event = await self._driver.arrival(self._row)
        self._over = event.type == "done"
        return event

    def close(self) -> None:
        """Cancel the request if it still runs; its "done" event stays to be read."""
        self._driver.cancel(self._row)

    def __del__(self) -> None:
        if not self._over:
            self.close()  # nobody can read the events any more
