"""A thread that owns an engine; everyone else sends it messages.

The thread starts with the first request and sleeps while there is none. It ends with the worker:
when the worker is closed or collected as garbage, or when the interpreter exits.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import Counter
from functools import partial
from typing import Literal

from dgemma.engine.engine import Engine
from dgemma.engine.sequence import Sequence
from dgemma.errors import EngineError
from dgemma.events import EventStream
from dgemma.types import Request

Message = tuple[Literal["add", "cancel"], Sequence] | tuple[Literal["close"], bool]
Inbox = queue.SimpleQueue[Message]  # its `put` may be called while garbage is collected


class Coming:
    """How many sequences of each owner are on their way to the thread."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._lock = threading.Lock()

    def of(self, owner: str) -> int:
        """Those of one owner."""
        return self._counts[owner]

    def add(self, owner: str, number: int) -> None:
        """That many more; below 0: less."""
        with self._lock:
            self._counts[owner] += number
            if not self._counts[owner]:
                del self._counts[owner]


class Worker:
    """Runs requests of any thread or event loop on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: Inbox = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._coming = Coming()
        self._process = os.getpid()

    def submit(self, request: Request) -> EventStream:
        """Start a request; it runs whether or not its stream is iterated.

        Raises:
            InvalidRequest, ContextOverflow: it cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
            EngineError: the worker is closed, or its thread is in the parent of this process.
        """
        seq = self.engine.prepare(request)
        if self._process != os.getpid():
            raise EngineError("this process was forked after the model was loaded; load it here")
        with self._starting:
            if self._closed:
                raise EngineError("this model was closed; load it again")
            self.engine.scheduler.check_waiting(seq.owner, self._coming.of(seq.owner))
            if self._thread is None:
                self._thread = self._start()
            self._coming.add(seq.owner, 1)
            self._inbox.put(("add", seq))
        return EventStream(seq.events, partial(self.cancel, seq))

    def _start(self) -> threading.Thread:
        thread = threading.Thread(
            target=_serve, args=(self.engine, self._inbox, self._coming),
            name="dgemma-engine", daemon=True,
        )  # fmt: skip
        thread.start()
        # Not bound to self: the thread must not keep the worker alive. Runs at exit, too.
        weakref.finalize(self, _end, self._inbox, thread)
        return thread

    def cancel(self, seq: Sequence) -> None:
        """End a request; harmless after the end. Any thread may call it, at any time."""
        self._inbox.put(("cancel", seq))

    def close(self, *, finish: bool = False) -> None:
        """End the running requests, or let them finish, and wait; take no further one."""
        with self._starting:
            self._closed = True
            thread = self._thread
        if thread is not None and self._process == os.getpid():
            self._inbox.put(("close", finish))
            thread.join()


def _end(inbox: Inbox, thread: threading.Thread) -> None:
    if not thread.is_alive():
        return  # it ended, or it is in the parent of this process
    inbox.put(("close", False))
    if thread is not threading.current_thread():
        thread.join()


def _serve(engine: Engine, inbox: Inbox, coming: Coming) -> None:
    """The thread: messages first, then a step, until the worker closes."""
    closing, finish = False, False
    while not (closing and (not finish or not engine.running)):
        wait = not engine.running and not closing
        while wait or not inbox.empty():
            wait = False
            kind, subject = inbox.get()
            if isinstance(subject, Sequence):
                _pass_on(engine, coming, kind, subject)
            else:
                closing, finish = True, subject
        if engine.running and not (closing and not finish):
            _step(engine)
    while not inbox.empty():  # sent while the last step ran
        kind, subject = inbox.get()
        if isinstance(subject, Sequence):
            _pass_on(engine, coming, kind, subject)
    engine.end_all()


def _pass_on(engine: Engine, coming: Coming, kind: str, seq: Sequence) -> None:
    try:
        if kind == "cancel":
            engine.cancel(seq)
        else:
            engine.add(seq)
    except Exception as error:  # a mistake of ours; the other requests go on
        why = f"{type(error).__name__}: {error}"
        try:
            engine.fail(seq, why)
        except Exception:
            engine.end_all(f"the engine failed: {why}")
    if kind == "add":
        coming.add(seq.owner, -1)


def _step(engine: Engine) -> None:
    try:
        engine.step()
    except Exception as error:  # a mistake of ours: nobody may wait for ever
        engine.end_all(f"the engine failed: {type(error).__name__}: {error}")
