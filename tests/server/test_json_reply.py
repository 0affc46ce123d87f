"""Large replies are written beside the event loop, in pieces, and read as small ones do."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.responses import JSONResponse

from dgemma.server import json_reply as module
from dgemma.server.json_reply import is_large, json_reply, written
from tests.support.client import serve

VALUES: tuple[Any, ...] = (
    {}, [], {"a": []}, {"a": {}, "b": [{}], "c": None, "d": True, "e": 1.5, "f": "é\n\"漢"},
    {"a": list(range(5000))}, {"a": [{"id": k, "piece": "x"} for k in range(300)]},
    [list(range(k)) for k in range(200)], {"a": [[1.0] * 65] * 64, "b": ((1, 2), ())},
    [["a"] * 257], {"a": [{"b": list(range(1000))}] * 3},
)  # fmt: skip


@pytest.mark.fault("R H3")
@pytest.mark.parametrize("value", VALUES)
def test_pieces_are_the_whole(value: Any) -> None:
    """Catches a comma too few, or a number that is written in another way."""
    assert written(value) == JSONResponse(value).body


@pytest.mark.fault("R H3")
def test_no_piece_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a reply that is encoded in one call, in which no other thread runs."""
    longest = 0
    plain = module._plain

    def noted(value: Any) -> str:
        nonlocal longest
        text = plain(value)
        longest = max(longest, len(text))
        return text

    monkeypatch.setattr(module, "_plain", noted)
    reply = {"choices": [{"tokens": [{"id": k, "piece": "abc"} for k in range(20_000)]}] * 2}
    assert len(written(reply)) > 1_000_000 and longest < 10_000


@pytest.mark.fault("R H3")
def test_size_is_told_without_looking_at_all() -> None:
    """Catches a reply whose size is found by a walk through all of it."""

    class Endless(list[int]):
        def __iter__(self) -> Any:
            while True:
                yield 1

    assert is_large({"a": Endless()}) and is_large({"a": "x" * 200_001})
    assert not is_large({"a": [1] * 1900, "b": "x" * 1000})


@pytest.mark.model
@pytest.mark.fault("R H3")
def test_large_replies_are_written_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a reply of megabytes that is written on the event loop."""
    threads: list[bool] = []
    write = module.written

    def noted(value: Any) -> bytes:
        threads.append(threading.current_thread() is main)
        return write(value)

    main = threading.current_thread()
    monkeypatch.setattr(module, "written", noted)
    client = serve()
    for count, large in ((10, []), (5000, [False])):
        threads.clear()
        body = {"content": "a" * count, "with_pieces": True}
        reply = client.post("/tokenize", body).json()
        assert "".join(one["piece"] for one in reply["tokens"]) == "a" * count
        assert threads == large
    many = client.post("/tokenize", {"content": "q~" * 40_000, "with_pieces": True})
    assert many.status_code == 400 and "with_pieces" in many.json()["error"]["message"]
    small = json_reply(client.app.state.aside, "", {"a": 1})
    assert asyncio.run(small).body == b'{"a":1}'
