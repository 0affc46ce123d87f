"""Gives memory back to the system after large requests: glibc keeps what threads have freed.

Knows the C library. Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

LATER_S = 5.0
"""Seconds from a large request's end until memory is given back: once for all of that time."""


def trim() -> None:
    """Give back what is free; nothing is done where the C library cannot (it is glibc's own)."""
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    give_back(0)  # ctypes frees the interpreter's lock meanwhile


class Trimmer:
    """Gives memory back in a thread, a while after it is told to, and once for many times."""

    def __init__(self, work: Callable[[], None] = trim) -> None:
        self._work = work
        self._due = False

    def later(self) -> None:
        """Something large has been freed."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(LATER_S, self._start)

    def _start(self) -> None:
        self._due = False
        asyncio.get_running_loop().run_in_executor(None, self._work)
