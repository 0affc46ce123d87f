"""The threads beside the event loop: owners take turns, and nobody's work holds all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.errors import EngineError
from dgemma.server.errors import Refusal
from dgemma.server.sse import ClientGone
from dgemma.server.threads import FairThreads, stop_if_left

pytestmark = pytest.mark.fault("R C3")


class Gate:
    """Work that says that it has begun, and waits until it is let go.

    Attributes:
        began: the names of the work that has begun, in order.
    """

    def __init__(self) -> None:
        self.began: list[str] = []
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)

    def work(self, name: str) -> str:
        self.began.append(name)
        self._entered.release()
        assert self._open.wait(120)
        return name

    async def entered(self, count: int) -> None:
        """Wait until so many more have begun."""
        for _ in range(count):
            assert await asyncio.to_thread(self._entered.acquire, timeout=120)

    def let_go(self) -> None:
        self._open.set()


def run(scene: Callable[[FairThreads, Gate], Any], **sizes: int) -> Any:
    """A scene with some threads."""

    async def whole() -> Any:
        threads, gate = FairThreads(**sizes), Gate()
        try:
            return await scene(threads, gate)
        finally:
            gate.let_go()
            threads.close()

    return asyncio.run(whole())


async def begin(
    threads: FairThreads, owner: str, gate: Gate, names: str
) -> list[asyncio.Task[str]]:
    """One task for each letter."""
    tasks = [asyncio.create_task(threads.run(owner, gate.work, name)) for name in names]
    await asyncio.sleep(0)
    return tasks


def test_one_owner_never_holds_all_threads() -> None:
    """Catches a pool that is full of one key's work when another key comes."""

    async def scene(threads: FairThreads, gate: Gate) -> None:
        tasks = await begin(threads, "a", gate, "AAAAAAAA")
        await gate.entered(4)
        tasks += await begin(threads, "b", gate, "BBBB")
        await gate.entered(2)
        tasks += await begin(threads, "c", gate, "CC")
        await gate.entered(1)
        tasks += await begin(threads, "d", gate, "D")
        await gate.entered(1)
        assert sorted(gate.began) == list("AAAABBCD")
        gate.let_go()
        await asyncio.gather(*tasks)

    run(scene, count=8)


def test_owners_take_turns() -> None:
    """Catches work that waits behind all that another key has sent before."""

    async def scene(threads: FairThreads, gate: Gate) -> None:
        tasks = await begin(threads, "a", gate, "aaaaa")
        await gate.entered(1)
        tasks += await begin(threads, "b", gate, "bb")
        tasks += await begin(threads, "c", gate, "c")
        gate.let_go()
        await asyncio.gather(*tasks)
        assert "".join(gate.began) == "aabcabaa"

    run(scene, count=1)


def test_work_of_a_client_that_left_does_not_begin() -> None:
    """Catches threads that work off what nobody waits for."""

    async def scene(threads: FairThreads, gate: Gate) -> None:
        (first,) = await begin(threads, "a", gate, "1")
        await gate.entered(1)
        left = await begin(threads, "a", gate, "xyz")
        (last,) = await begin(threads, "a", gate, "2")
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert threads.waiting == 1
        gate.let_go()
        assert await asyncio.gather(first, last) == ["1", "2"]
        assert gate.began == ["1", "2"]

    run(scene, count=1)


def test_what_runs_is_told_that_its_client_left() -> None:
    """Catches a loop that goes on for nobody, and a task that waits for its end."""
    told, entered = threading.Event(), threading.Event()

    def long() -> None:
        entered.set()
        try:
            while True:
                stop_if_left()
        except ClientGone:
            told.set()
            raise

    async def scene(threads: FairThreads, gate: Gate) -> None:
        task = asyncio.create_task(threads.run("a", long))
        assert await asyncio.to_thread(entered.wait, 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(told.wait, 120)
        assert await threads.run("a", int) == 0

    run(scene, count=1)
    stop_if_left()  # outside of all work it has nothing to say


@pytest.mark.parametrize("begun", [False, True])
def test_a_result_that_nobody_takes_is_undone(begun: bool) -> None:
    """Catches requests that run on because their client left while a thread started them."""
    undone: list[str] = []

    async def scene(threads: FairThreads, gate: Gate) -> None:
        if not begun:
            await begin(threads, "a", gate, "1")
            await gate.entered(1)
        task = asyncio.create_task(threads.run("a", gate.work, "2", undo=undone.append))
        await asyncio.sleep(0)
        if begun:
            await gate.entered(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.let_go()
        assert await threads.run("a", str) == ""

    run(scene, count=1)
    assert undone == (["2"] if begun else [])


def test_an_owners_queue_is_bounded() -> None:
    """Catches a queue that grows without an end, and one owner's that is full for others."""

    async def scene(threads: FairThreads, gate: Gate) -> None:
        tasks = await begin(threads, "a", gate, "1")
        await gate.entered(1)
        tasks += await begin(threads, "a", gate, "234")
        with pytest.raises(Refusal, match="of this key wait") as refused:
            await threads.run("a", int)
        assert refused.value.status == 429
        other = asyncio.create_task(threads.run("b", int))
        gate.let_go()
        await asyncio.gather(*tasks, other)

    run(scene, count=1, waiting=3)


def test_a_panic_of_a_library_is_an_error() -> None:
    """Catches a thread that ends with a panic, which is no `Exception`, and takes its place."""

    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic

    async def scene(threads: FairThreads, gate: Gate) -> None:
        for _ in range(3):
            with pytest.raises(EngineError, match="Panic"):
                await threads.run("a", panic)
        assert await threads.run("a", int) == 0

    run(scene, count=1)
