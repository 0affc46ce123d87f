"""A thread that owns an engine; everyone else sends it messages.

The thread starts with the first request and sleeps while there is none. It ends with the worker:
when that is closed, collected as garbage, or the interpreter exits. Knows nothing about what an
engine computes.
"""

from __future__ import annotations

import queue
import threading
import weakref
from typing import Literal

from dgemma.engine.engine import Engine
from dgemma.engine.row import Enough, Row
from dgemma.engine.stream import Stream
from dgemma.errors import EngineError, Overloaded
from dgemma.types import Event, Request

Message = tuple[Literal["add", "cancel"], Row] | tuple[Literal["close"], bool]
Inbox = queue.SimpleQueue[Message]  # its `put` may be called while garbage is collected


class Worker:
    """Runs requests of any thread or event loop on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: Inbox = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def submit(self, request: Request, enough: Enough | None = None) -> Stream:
        """Start a request; it runs whether or not its stream is iterated.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
            EngineError: the worker is closed.
        """
        row = self.engine.prepare(request, enough)
        with self._starting:
            if self._closed:
                raise EngineError("this model was closed; load it again")
            self.engine.scheduler.check_waiting()
            self._inbox.put(("add", row))
            if self._thread is None:
                self._start()
        return Stream(self, row)

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=_serve, args=(self.engine, self._inbox), name="dgemma-engine", daemon=True
        )
        self._thread.start()
        # Not bound to self: the thread must not keep the worker alive. Runs at exit, too.
        weakref.finalize(self, _end, self._inbox, self._thread)

    def next_event(self, row: Row) -> Event:
        """See `Driver`."""
        return row.mail.wait()

    async def arrival(self, row: Row) -> Event:
        """See `Driver`."""
        return await row.mail.arrival()

    def cancel(self, row: Row) -> None:
        """See `Driver`."""
        self._inbox.put(("cancel", row))

    def close(self, *, finish: bool = False) -> None:
        """End what runs, or let it finish; no further request is taken. Waits for the thread."""
        with self._starting:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._inbox.put(("close", finish))
            thread.join()


def _end(inbox: Inbox, thread: threading.Thread) -> None:
    inbox.put(("close", False))
    if thread is not threading.current_thread():
        thread.join()


def _serve(engine: Engine, inbox: Inbox) -> None:
    """The thread: messages first, then a step, until it is told to close."""
    closing, finish = False, False
    while not (closing and (not finish or not engine.running)):
        wait = not engine.running and not closing
        while wait or not inbox.empty():
            wait = False
            kind, what = inbox.get()
            if kind == "close":
                closing, finish = True, bool(what)
            elif isinstance(what, Row):
                _tell(engine, kind, what)
        if engine.running and not (closing and not finish):
            _step(engine)
    engine.end_all()
    while not inbox.empty():  # added while the last step ran
        _, what = inbox.get()
        if isinstance(what, Row) and what.progress.output is None:
            _refuse(what, None)


def _tell(engine: Engine, kind: str, row: Row) -> None:
    if kind == "cancel":
        engine.cancel(row)
        return
    try:
        engine.add(row)
    except Exception as error:  # too many came in between; or a mistake of ours
        told = str(error) if isinstance(error, Overloaded) else f"{type(error).__name__}: {error}"
        _refuse(row, told)


def _refuse(row: Row, error: str | None) -> None:
    """End a row that the engine does not have."""
    progress = row.progress
    progress.finish("error" if error else "cancelled", error)
    row.mail.put(Event(type="done", index=progress.request.index, output=progress.output))


def _step(engine: Engine) -> None:
    try:
        engine.step()
    except Exception as error:  # a mistake of ours: nobody may wait for ever
        engine.end_all(f"the engine failed: {type(error).__name__}: {error}")
