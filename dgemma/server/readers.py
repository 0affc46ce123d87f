"""Bodies that are being sent: how many, how large together, and whose gives way.

Knows bytes and owners. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dgemma.server.settings import MIB

READERS = 256
"""Bodies that are received at a time."""

READING_BYTES = 256 * MIB
"""Bytes of all bodies that have come and are not read as JSON yet."""


class Reader:
    """A body that is being received.

    Attributes:
        bytes: that have come.
    """

    def __init__(self, readers: Readers, whose: str, limit: asyncio.Timeout) -> None:
        self._readers, self._whose, self._limit = readers, whose, limit
        self.bytes = 0

    def add(self, count: int) -> None:
        """Bytes have come."""
        self.bytes += count
        self._readers.make_room(count, 0)

    def whole(self) -> None:
        """All has come: time no longer counts."""
        if not self._limit.expired():
            self._limit.reschedule(None)

    def give_way(self) -> None:
        """End it, as if its time were over."""
        if not self._limit.expired():
            self._limit.reschedule(0)


class Readers:
    """All bodies that are being received. If there are too many, or too large ones, the oldest of
    the owner who has most gives way."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Reader, None]] = {}  # of each owner, the oldest first
        self._count = self._bytes = 0

    @asynccontextmanager
    async def reading(self, whose: str, within_s: float) -> AsyncIterator[Reader]:
        """Receive a body.

        Args:
            whose: key or address of the sender.

        Raises:
            TimeoutError: it took too long, or gave way.
        """
        async with asyncio.timeout(within_s) as limit:
            self.make_room(0, 1)
            reader = Reader(self, whose, limit)
            self._of.setdefault(whose, {})[reader] = None
            try:
                yield reader
            finally:
                self._forget(reader, whose)

    def make_room(self, more_bytes: int, more: int) -> None:
        """Count what has come, and let others give way to it."""
        self._bytes += more_bytes
        self._count += more
        while self._of and self._count > READERS:
            self._evict(max(self._of, key=lambda whose: len(self._of[whose])))
        while self._of and self._bytes > READING_BYTES:
            self._evict(max(self._of, key=lambda whose: sum(r.bytes for r in self._of[whose])))

    def _evict(self, whose: str) -> None:
        oldest = next(iter(self._of[whose]))
        self._forget(oldest, whose)
        oldest.give_way()

    def _forget(self, reader: Reader, whose: str) -> None:
        own = self._of.get(whose, {})
        if reader in own:
            del own[reader]
            self._count -= 1
            self._bytes -= reader.bytes
            if not own:
                del self._of[whose]
