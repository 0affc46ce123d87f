"""Work that holds the interpreter's lock, beside the event loop: one piece at a time, owners by
turns.

Two such threads are no faster than one, and the event loop would wait for both of them each time.
Knows threads and owners. Knows nothing about the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dgemma.server.service import Service

T = TypeVar("T")


class Aside:
    """Runs plain work in one thread of the service at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()
        self._own: dict[str, tuple[asyncio.Lock, int]] = {}  # of each owner, and how many want it

    async def run(self, owner: str, work: Callable[..., T], *given: object) -> T:
        """The result of some work. Of each owner one piece waits for its turn, the first that came.

        Args:
            owner: whose work it is: a key, or an address.
        """
        own, wanted = self._own.get(owner, (asyncio.Lock(), 0))
        self._own[owner] = own, wanted + 1
        try:
            async with own, self._turn:
                return await self._service.in_thread(owner, work, *given)
        finally:
            own, wanted = self._own[owner]
            self._own[owner] = own, wanted - 1
            if wanted == 1:
                del self._own[owner]
