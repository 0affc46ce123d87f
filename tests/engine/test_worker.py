"""The thread that owns the engine: from any thread or loop, without a leak, to an end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest

from dgemma.engine.engine import Engine
from dgemma.engine.worker import Worker
from dgemma.errors import EngineError, InvalidRequest, Overloaded
from dgemma.interfaces import Matcher
from dgemma.types import Event, Output, Request
from tests.support.engines import EndingFrontend, engine, request, run, tiny

ENDLESS = {"max_tokens": 230, "max_steps": 48, "confidence_threshold": 0.0}


def threads() -> int:
    """Living threads of engines."""
    return sum(thread.name == "dgemma-engine" for thread in threading.enumerate())


def wait_for(condition: Any, seconds: float = 20) -> None:
    """Until it holds; a test that hangs says nothing."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def test_the_same_events_as_without_a_thread() -> None:
    """A thread that loses, repeats or reorders events."""
    expected = [run(engine().submit(request(seed)))[0] for seed in range(5)]
    worker = Worker(engine())
    streams = [worker.submit(request(seed)) for seed in range(5)]
    assert [run(stream)[0] for stream in streams] == expected
    worker.close()


def test_it_runs_while_nobody_reads() -> None:
    """A request that is computed only while someone iterates."""
    worker = Worker(engine())
    stream = worker.submit(request())
    wait_for(lambda: worker.engine.counters().ended_length == 1)
    assert run(stream)[1].finish_reason == "length"
    worker.close()


def test_async() -> None:
    """A loop that is held up while the model runs, or events that are lost between two waits."""

    async def collect(stream: Any) -> list[Event]:
        return [event async for event in stream]

    async def both() -> tuple[list[list[Event]], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        worker = Worker(engine())
        streams = [worker.submit(request(seed)) for seed in range(4)]
        got = await asyncio.gather(*(collect(stream) for stream in streams))
        ticker.cancel()
        worker.close()
        return got, ticks

    expected = [run(engine().submit(request(seed)))[0] for seed in range(4)]
    got, ticks = asyncio.run(both())
    assert got == expected and ticks > 20


def test_a_task_that_is_cancelled_between_two_events() -> None:
    """The next reader of a stream is not woken, or an event is lost with the cancelled task."""
    worker = Worker(engine())

    async def leave() -> None:
        stream = worker.submit(request(**ENDLESS))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        stream.close()
        assert [e async for e in stream][-1].output is not None

    asyncio.run(leave())
    wait_for(lambda: worker.engine.running == 0)
    worker.close()


def test_a_loop_that_is_gone() -> None:
    """The thread dies of a reader whose loop was closed."""
    worker = Worker(engine())

    async def leave(stream: Any) -> None:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()

    stream = worker.submit(request(**ENDLESS))
    asyncio.run(leave(stream))
    stream.close()
    assert run(worker.submit(request()))[1].finish_reason == "length"
    worker.close()


def test_closing_and_dropping() -> None:
    """Close, close again, drop: the row leaves at the next step."""
    worker = Worker(engine())
    stream = worker.submit(request(**ENDLESS))
    next(stream)
    stream.close()
    stream.close()
    _, output = run(stream)
    assert output.finish_reason == "cancelled"
    next(worker.submit(request(**ENDLESS)))
    gc.collect()
    wait_for(lambda: worker.engine.running == 0)
    worker.close()


@pytest.mark.parametrize("finish", [True, False])
def test_close(finish: bool) -> None:
    """A closed worker leaves someone waiting, a thread behind, or takes another request."""
    before = threads()
    worker = Worker(engine())
    streams = [worker.submit(request(seed, **(ENDLESS if not finish else {}))) for seed in range(6)]
    next(streams[0])
    worker.close(finish=finish)
    worker.close()
    assert threads() == before
    reasons = {run(stream)[1].finish_reason for stream in streams}
    assert reasons == ({"length"} if finish else {"cancelled"})
    with pytest.raises(EngineError, match="closed"):
        worker.submit(request())


def test_refusals_come_at_once() -> None:
    """A bad request fails in the thread, where nobody sees it."""
    worker = Worker(engine())
    with pytest.raises(InvalidRequest, match="empty"):
        worker.submit(Request(token_ids=()))
    worker.engine.scheduler.max_waiting = 0
    with pytest.raises(Overloaded):
        worker.submit(request())
    worker.close()
    assert worker._thread is None, "nothing was started"


def test_a_failing_engine_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread dies and every reader hangs."""
    worker = Worker(engine())
    monkeypatch.setattr(worker.engine.scheduler, "plan", lambda now: 1 / 0)
    _, output = run(worker.submit(request()))
    assert output.finish_reason == "error" and "ZeroDivisionError" in str(output.error)
    assert run(worker.submit(request()))[1].finish_reason == "length"
    worker.close()


@pytest.mark.parametrize("call", ["add", "cancel"])
def test_a_fault_outside_a_step(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread dies, everyone hangs; or a request ends twice."""
    worker = Worker(engine())
    whole = getattr(worker.engine.scheduler, "add" if call == "add" else "remove")
    faults = [1]

    def broken(seq: Any, *rest: Any) -> Any:
        if seq.request.index == 7 and faults:
            faults.pop()
            raise AssertionError("a count is wrong")
        return whole(seq, *rest)

    monkeypatch.setattr(worker.engine.scheduler, "add" if call == "add" else "remove", broken)
    good, bad = worker.submit(request(1)), worker.submit(request(7, **ENDLESS))
    if call == "cancel":
        next(bad)
    bad.close()
    assert run(bad)[1].finish_reason in ("error", "cancelled")
    assert run(good)[1].finish_reason in ("length", "error")
    assert run(worker.submit(request(2)))[1].finish_reason == "length"
    worker.close()


def test_a_forked_process_is_told() -> None:
    """A child process waits for a thread that stayed in its parent."""
    worker = Worker(engine())
    run(worker.submit(request()))
    worker._process += 1
    with pytest.raises(EngineError, match="forked"):
        worker.submit(request())
    worker._process -= 1
    worker.close()


@pytest.mark.slow
def test_a_dropped_worker_ends_its_thread_and_frees_the_model() -> None:
    """A model that was loaded and forgotten stays in memory."""
    before = threads()
    worker = Worker(engine())
    run(worker.submit(request()))
    model = weakref.ref(worker.engine.model)
    assert threads() == before + 1
    del worker
    gc.collect()
    wait_for(lambda: threads() == before)
    gc.collect()
    assert model() is None


def test_many_threads() -> None:
    """Submitting, reading and cancelling from eight threads at once."""
    expected = {seed: run(engine().submit(request(seed)))[1] for seed in range(8)}
    worker = Worker(engine())
    got: dict[int, Output] = {}

    def work(seed: int) -> None:
        for _ in range(3):
            worker.submit(request(100 + seed, **ENDLESS)).close()
        got[seed] = run(worker.submit(request(seed)))[1]

    crowd = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert got == expected
    wait_for(lambda: worker.engine.running == 0)
    worker.close()


@pytest.mark.process
def test_the_interpreter_exits_while_it_runs() -> None:
    """A script that ends in mid-answer hangs, or dies of the thread it left."""
    code = (
        "from dgemma.engine.worker import Worker\n"
        "from tests.support.engines import engine, request\n"
        f"worker = Worker(engine()); stream = worker.submit(request(**{ENDLESS})); next(stream)\n"
        "print('over')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


class Noting(EndingFrontend):
    """A frontend whose grammar is broken; it notes the threads that it works in."""

    def __init__(self) -> None:
        super().__init__(lambda ids: bool(self.readers.append(threading.current_thread().name)))
        self.matchers: list[str] = []
        self.readers: list[str] = []

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """See `TextSide`."""
        self.matchers.append(threading.current_thread().name)
        if request.params.regex:
            raise InvalidRequest("regex: it is broken")
        return None


def test_grammars_are_made_in_the_thread_that_asks() -> None:
    """A grammar that is compiled while all other requests wait; an error that comes too late."""
    worker = Worker(engine())
    worker.engine.frontend = frontend = Noting()
    with pytest.raises(InvalidRequest, match="it is broken"):
        worker.submit(request(regex="("))
    assert worker.engine.running == 0 and worker._coming.of("") == 0
    run(worker.submit(request()))
    worker.close()
    assert frontend.matchers == [threading.current_thread().name] * 2
    assert set(frontend.readers) == {"dgemma-engine"}


def test_an_owner_on_its_way_does_not_shut_out_another() -> None:
    """One owner's requests that the thread has not yet taken fill the queue for all."""
    one = Engine(tiny(), end_ids=(), max_waiting=4)
    worker = Worker(one)
    with one._alone():  # the thread is in a long pass
        streams = [worker.submit(replace(request(), owner="a")) for _ in range(4)]
        with pytest.raises(Overloaded):
            worker.submit(replace(request(), owner="a"))
        streams += [worker.submit(replace(request(), owner="b")) for _ in range(2)]
    for stream in streams:
        assert run(stream)[1].finish_reason == "length"
    assert not worker._coming.of("a") and not worker._coming.of("b")
    worker.close()
