"""A long answer with drafts does not hold up the event loop: its cost is that of its new tokens."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from dgemma.engine.sequence import Sequence
from dgemma.events import EventStream
from dgemma.server.app import create_app
from dgemma.server.settings import ServerLimits, Settings
from dgemma.text.parse import StreamParser
from dgemma.types import Event, Request
from tests.support.client import QUESTION, Recorder, routes
from tests.support.nano import nano

pytestmark = pytest.mark.model

CANVAS, CANVASES, STEPS = 256, 32, 12
STEP_S = 0.002
GOAL_MS = 20
TEXT = "A line of some words, é and 漢, then another; and so on it goes.\n"


def long_answer(request: Request) -> EventStream:
    """An answer of 8,192 tokens with a draft at each step, which a thread tells as engines do."""
    frontend = nano().frontend
    words = frontend.tokenizer.encode(TEXT * 200)
    own = replace(request.params, seed=0)
    request = replace(request, params=own, thought=frontend.thought(request))
    seq = Sequence(
        request, width=CANVAS, context_length=10**6, reader=frontend.reader(request)
    )  # fmt: skip

    def tell() -> None:
        for number in range(CANVASES):
            at = number * CANVAS % (len(words) - CANVAS)
            ids = words[at : at + CANVAS]
            for step in range(STEPS):
                time.sleep(STEP_S)
                seq.events.put(Event(
                    type="frame", canvas=number, step=step, ids=tuple(ids),
                    deltas=seq.draft(ids, ()), accepted=bytes(CANVAS), entropy=bytes(CANVAS),
                ))  # fmt: skip
            seq.events.put(seq.commit(ids, False, STEPS))
        seq.finish("stop")
        assert seq.done is not None
        seq.events.put(seq.done)

    threading.Thread(target=tell, daemon=True).start()
    return EventStream(seq.events, lambda: None)


async def streamed(app: Any, body: dict[str, Any]) -> tuple[bytes, float]:
    """The body of a reply, and the longest time in seconds that the loop did nothing else."""
    sent, longest, done = [json.dumps(body).encode()], 0.0, asyncio.Event()
    got: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop()}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        got.append(message.get("body", b""))

    async def watch() -> None:
        nonlocal longest
        for turn in count():
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)
            if done.is_set():
                return
            if turn % 50 == 0:
                await asyncio.sleep(0.001)  # idle for a while, as a loop is

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "root_path": "",
    }  # fmt: skip
    watching = asyncio.ensure_future(watch())
    await app(scope, receive, send)
    done.set()
    await watching
    return b"".join(got), longest


@pytest.mark.slow
@pytest.mark.parametrize("drafts", ["text", "tokens"])
def test_a_long_stream_with_drafts(
    drafts: str, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
) -> None:
    """Catches an answer that is read again for every draft, and a loop that one stream keeps."""
    read: list[int] = []
    push = StreamParser.push

    def counted(parser: StreamParser, ids: Any) -> Any:
        read.append(len(ids))
        return push(parser, ids)

    monkeypatch.setattr(StreamParser, "push", counted)
    app = create_app(Recorder(long_answer), Settings(limits=ServerLimits(max_tokens=10_000)))
    app.router.routes = routes()
    body = {
        "messages": QUESTION, "stream": True, "max_tokens": 9000,
        "diffusion": {"stream": drafts},
    }  # fmt: skip
    before = time.thread_time()
    reply, longest = asyncio.run(streamed(app, body))
    spent = time.thread_time() - before
    events = [json.loads(line[6:]) for line in reply.decode().split("\n\n")[:-2]]
    text = "".join(one["delta"].get("content", "") for e in events for one in e["choices"])
    assert len(nano().frontend.tokenizer.encode(text)) > 8000
    assert sum(e.get("type") == "diffusion_frame" for e in events) == CANVASES * STEPS
    assert sum(read) == CANVAS * CANVASES * (STEPS + 1), "every id is read once"
    name = f"8,192 tokens streamed with drafts ({drafts})"
    record(f"{name}: longest silence of the event loop, ms", 1000 * longest, f"goal {GOAL_MS}")
    record(f"{name}: seconds of the event loop", spent)
