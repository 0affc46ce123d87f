"""Threads for plain work (templates, tokenizers, grammars), shared fairly by the owners of keys.

Knows owners, queues and clients that have left. Knows nothing about what the work is.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from dgemma.errors import EngineError
from dgemma.server.errors import busy
from dgemma.server.sse import ClientGone

T = TypeVar("T")

THREADS = min(16, max(2, os.cpu_count() or 1))
"""Threads of one server. They compete with the engine for the processors and the interpreter's
lock, so there are few."""

WAITING = 4096
"""Pieces of work of one owner that may wait for a thread."""

IDLE_S = 30.0
"""A thread that has had no work for so long ends."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A piece of work.

    Attributes:
        future: its result; cancelled if nobody waits for it any more.
        left: set when the client has left.
    """

    owner: str
    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)


_current = threading.local()


def stop_if_left() -> None:
    """Call this between the parts of long work: it ends the work if nobody waits for it.

    Raises:
        ClientGone: the client has left.
    """
    job: _Job | None = getattr(_current, "job", None)
    if job is not None and job.left.is_set():
        raise ClientGone


class FairThreads:
    """Runs work in threads. Of the owners with waiting work the one with the fewest threads is
    next; among equals they take turns.

    An owner holds at most half of the threads that no other owner holds, so that there is a thread
    for whoever comes next. Work that nobody waits for any more does not begin.
    """

    def __init__(self, count: int = THREADS, waiting: int = WAITING) -> None:
        """
        Args:
            count: most threads; each is started when it is first needed.
            waiting: most waiting work of one owner.
        """
        self._count, self._most_waiting = count, waiting
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Job]] = {}  # the owner who waits longest comes first
        self._running: Counter[str] = Counter()
        self._threads = self._idle = 0
        self._closed = False

    async def run(
        self, owner: str, work: Callable[..., T], *given: Any,
        undo: Callable[[T], None] | None = None, first: bool = False,
    ) -> T:  # fmt: skip
        """Do work in a thread. If the task is cancelled, the work is dropped, or told.

        Args:
            owner: whose work it is.
            undo: is called with the result if nobody is there to take it.
            first: before the other work of this owner.

        Raises:
            Refusal: 429, too much work of this owner waits.
        """
        job = self._put(owner, partial(work, *given), first)
        try:
            result: T = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.left.set()
            self._drop(job)
            if undo is not None:
                job.future.add_done_callback(partial(_undone, undo))
            raise
        return result

    def close(self) -> None:
        """Threads end when there is no more work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Work that waits for a thread."""
        return sum(map(len, list(self._waiting.values())))

    def _put(self, owner: str, work: Callable[[], Any], first: bool) -> _Job:
        job = _Job(owner, work)
        with self._changed:
            queue = self._waiting.setdefault(owner, deque())
            if len(queue) >= self._most_waiting:
                raise busy(f"{len(queue)} requests of this key wait for a thread; try again soon")
            if first:
                queue.appendleft(job)
            else:
                queue.append(job)
            if self.waiting > self._idle and self._threads < self._count:
                self._threads += 1
                threading.Thread(target=self._work, name="dgemma-aside", daemon=True).start()
            self._changed.notify()
        return job

    def _drop(self, job: _Job) -> None:
        with self._changed:
            queue = self._waiting.get(job.owner)
            if queue and job in queue:
                queue.remove(job)
                if not queue:
                    del self._waiting[job.owner]

    def _next(self) -> _Job | None:
        """The next work that may begin; the lock is held."""
        free = self._count - self._running.total()
        chosen: str | None = None
        for owner in self._waiting:
            own = self._running[owner]
            fewer = chosen is None or own < self._running[chosen]
            if fewer and own < (own + free + 1) // 2:
                chosen = owner
        if chosen is None:
            return None
        queue = self._waiting.pop(chosen)
        job = queue.popleft()
        if queue:
            self._waiting[chosen] = queue  # at the end of the line
        self._running[chosen] += 1
        return job

    def _work(self) -> None:
        """A thread."""
        while True:
            with self._changed:
                self._idle += 1
                while (job := self._next()) is None:
                    if self._closed or not self._changed.wait(IDLE_S):
                        self._idle -= 1
                        self._threads -= 1
                        return
                self._idle -= 1
            _do(job)
            with self._changed:
                self._running[job.owner] -= 1
                if not self._running[job.owner]:
                    del self._running[job.owner]
                self._changed.notify_all()
            del job


def _do(job: _Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    _current.job = job
    try:
        job.future.set_result(job.work())
    except Exception as error:
        job.future.set_exception(error)
    except BaseException as error:  # a panic of a library: it must not end the thread or the loop
        name = type(error).__name__
        failed = EngineError(f"a library failed on this request ({name}); change the request")
        failed.__cause__ = error
        job.future.set_exception(failed)
    finally:
        _current.job = None


def _undone(undo: Callable[[T], None], future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())
