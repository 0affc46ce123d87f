"""One stream, several readers: each event goes to one of them, and none waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from dgemma.events import EventQueue, EventStream
from dgemma.types import Event, Output

COUNT = 30
DONE = Event(type="done", output=Output(text="x"))


def stream() -> tuple[EventQueue, EventStream]:
    """A stream without events yet."""
    events = EventQueue()
    return events, EventStream(events, lambda: None)


def fill(events: EventQueue) -> None:
    """All events of a request."""
    for step in range(COUNT):
        events.put(Event(type="frame", step=step))
    events.put(DONE)


def check(found: list[Event]) -> None:
    """Every event once."""
    assert sorted(event.step for event in found if event.type == "frame") == [*range(COUNT)]
    assert sum(event.type == "done" for event in found) == 1 and len(found) == COUNT + 1


def in_threads(work: list[Callable[[], None]]) -> None:
    """Run all at once; a thread that hangs is a failure."""
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads), "a reader waits for ever"


@pytest.mark.fault("R L2")
@pytest.mark.parametrize("late", [False, True])
def test_threads_share_a_stream(late: bool) -> None:
    """Catches readers that wait for ever for an end that another has taken."""
    events, one = stream()
    found: list[Event] = []
    if not late:
        fill(events)
    readers: list[Callable[[], None]] = [lambda: found.extend(one) for _ in range(3)]
    in_threads([*readers, lambda: fill(events)] if late else readers)
    check(found)
    assert one.result().text == "x" and list(one) == []


@pytest.mark.fault("R L2")
@pytest.mark.parametrize("late", [False, True])
def test_tasks_share_a_stream(late: bool) -> None:
    """The same in one event loop, where a reader must not take the wake-up of another."""
    events, one = stream()
    found: list[Event] = []

    async def read() -> None:
        async for event in one:
            found.append(event)

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0)
        if late:
            tasks[0].cancel()
            fill(events)
        await asyncio.wait_for(asyncio.gather(*tasks[late:]), timeout=30)

    if not late:
        fill(events)
    asyncio.run(all_of_them())
    check(found)


@pytest.mark.fault("R L2")
def test_threads_and_loops_share_a_stream() -> None:
    """One reader blocks its thread, two others wait in loops of their own."""
    events, one = stream()
    found: list[Event] = []

    async def read() -> None:
        async for event in one:
            found.append(event)

    in_threads([lambda: asyncio.run(read()), lambda: asyncio.run(read()),
                lambda: found.extend(one), lambda: fill(events)])  # fmt: skip
    check(found)


@pytest.mark.fault("R L2")
def test_readers_that_drive_an_engine() -> None:
    """A stream that makes progress itself: the second reader must not step on for ever."""
    events = EventQueue()
    one = EventStream(events, lambda: None, lambda: fill(events))
    check(list(one))
    assert list(one) == [] and events.take() is None and events.wait() is None
