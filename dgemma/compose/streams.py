"""Several streams side by side: their items as they come, each with its stream's number."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeVar

from dgemma.errors import Overloaded
from dgemma.events import EventStream
from dgemma.types import Event, Request

T = TypeVar("T")

Submit = Callable[[Request], EventStream]


class SideBySide(Iterator[tuple[int, Event]]):
    """Starts requests and gives their events, one of each in turn: a batch goes on in step.

    Raises:
        Overloaded: more requests wait than may, and none of these could be finished first.
    """

    def __init__(self, submit: Submit, requests: Sequence[Request]) -> None:
        self._submit = submit
        self._left = deque(enumerate(requests))
        self._streams: dict[int, EventStream] = {}  # those that run
        self._closed = False
        self._events = self._in_turn()

    def __next__(self) -> tuple[int, Event]:
        return next(self._events)

    def _in_turn(self) -> Iterator[tuple[int, Event]]:
        streams = self._streams
        while streams or (self._left and not self._closed):
            self._start()
            running = len(streams)
            while len(streams) == running:
                for number, stream in list(streams.items()):
                    event = next(stream)
                    if event.output is not None:
                        del streams[number]
                    yield number, event

    def _start(self) -> None:
        """Start as many as may wait."""
        while self._left and not self._closed:
            number, request = self._left[0]
            try:
                stream = self._streams[number] = self._submit(request)
            except Overloaded:
                if not self._streams:
                    raise
                return
            self._left.popleft()
            if self._closed:  # by another thread, meanwhile
                stream.close()

    def close(self) -> None:
        """End those that run, and start no other; from any thread."""
        self._closed = True
        for stream in list(self._streams.values()):
            stream.close()

    def wait(self) -> None:
        """Read those that run to their ends."""
        for stream in self._streams.values():
            deque(stream, maxlen=0)


async def merge(sources: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The items of several sources as they come, each with its source's number.

    The first exception ends all; so does closing this generator.
    """
    tasks: dict[asyncio.Task[T], int] = {}
    try:
        for number, source in enumerate(sources):
            tasks[asyncio.ensure_future(anext(source))] = number
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: tasks[task]):
                number = tasks.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                yield number, item
                tasks[asyncio.ensure_future(anext(sources[number]))] = number
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        for source in sources:
            await source.aclose()
