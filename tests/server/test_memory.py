"""Memory is given back after large requests: once for many of them, and not on the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from dgemma.server import memory
from dgemma.server.memory import Trimmer, trim
from tests.support.client import ASK, Client, serve


@pytest.mark.fault("R M5")
def test_once_for_many_and_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pass over all memory for every request, or one that holds up the event loop."""
    monkeypatch.setattr(memory, "LATER_S", 0.0)
    done: list[bool] = []

    async def scene() -> None:
        trimmer = Trimmer(lambda: done.append(threading.current_thread() is main))
        for round_ in (1, 2):
            for _ in range(50):
                trimmer.later()
            async with asyncio.timeout(20):
                while len(done) < round_:
                    await asyncio.sleep(0.001)

    main = threading.current_thread()
    asyncio.run(scene())
    assert done == [False, False]


def test_where_the_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a server that fails beside another C library."""
    asked: list[str | None] = []

    def other(name: str | None) -> object:
        asked.append(name)
        return object()

    trim()
    monkeypatch.setattr(memory.ctypes, "CDLL", other)
    trim()
    assert asked == [None]


@pytest.mark.model
@pytest.mark.fault("R M5")
def test_only_large_requests_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a large body after which nothing is given back, and small ones that ask for it."""
    told: list[int] = []
    monkeypatch.setattr(Trimmer, "later", lambda _: told.append(1))
    client: Client = serve()
    for size, count in ((10, 0), (70_000, 1)):
        body: dict[str, Any] = ASK | {"metadata": {"a": "x" * size}, "seed": -1}
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        assert client.post("/v1/chat/completions", content=content, headers=headers).status_code
        assert len(told) == count
