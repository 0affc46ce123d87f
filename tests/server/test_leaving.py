"""Clients that hang up: at every event of a stream, before a plain reply, a hundred at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.engine.counters import Counters
from tests.support.bodies import APPLIED, APPLY, EDIT, MESSAGE, said
from tests.support.client import QUESTION, Client, serve
from tests.support.nano import nano

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
SLOW: dict[str, Any] = {"diffusion": {"max_steps": 10_000, "stability_threshold": 10_000}}
ENDLESS: dict[str, Any] = {"messages": QUESTION, "min_tokens": 6000, "max_tokens": 6000}


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano."""
    return serve()


async def leave(
    client: Client, fields: dict[str, Any], after: int, path: str = CHAT, base: Any = ENDLESS
) -> int:
    """A request whose client is gone after so many events; how many it got in the end.

    The one that leaves before the first event waits until the model is at work.
    """
    body, steps = json.dumps(base | fields).encode(), nano().counters().steps
    sent, gone, events = False, asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        if after:
            await gone.wait()
        while nano().counters().steps < steps + 2:
            await asyncio.sleep(0.002)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal events
        if message["type"] == "http.response.body" and message.get("body"):
            events += 1
            if events == after:
                gone.set()

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "root_path": "",
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "scheme": "http", "server": ("test", 80), "client": ("test", 1),
    }  # fmt: skip
    await asyncio.wait_for(client.app(scope, receive, send), 30)
    return events


def idle(client: Client) -> Counters:
    """The engine's counts when nothing runs any more."""
    until = time.monotonic() + 10
    found = nano().counters()
    while (found.running or found.waiting) and time.monotonic() < until:
        time.sleep(0.005)
        found = nano().counters()
    assert (found.running, found.waiting, found.pages_full_used) == (0, 0, 0)
    assert client.app.state.service.open_requests == 0
    return found


def test_before_a_plain_reply(client: Client) -> None:
    """Catches an answer that is computed to its end for nobody."""
    before = nano().counters().ended_cancelled
    assert asyncio.run(leave(client, {"n": 2}, 0)) == 0
    assert idle(client).ended_cancelled == before + 2


@pytest.mark.parametrize("fields", [
    {"diffusion": {"max_steps": 2, "stream": "tokens"}},
    {"diffusion": {"max_steps": 2}, "n": 2},
])  # fmt: skip
def test_at_every_event_of_a_stream(
    client: Client, fields: dict[str, Any], count: Callable[[int, int], int]
) -> None:
    """Catches an event at which a client cannot leave without its request running on."""
    choices = fields.get("n", 1)
    for after in range(0, 16, count(2, 1)):
        before = nano().counters().ended_cancelled
        assert asyncio.run(leave(client, fields | {"stream": True}, after)) >= after
        assert idle(client).ended_cancelled == before + choices


@pytest.mark.parametrize(("path", "body", "events"), [
    ("/v1/completions", {"prompt": "Hello", "min_tokens": 6000, "max_tokens": 6000}, 8),
    # Its first events come before any text.
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 64} | SLOW, 3),
    ("/v1/fim/completions", {"prompt": "Dear ", "suffix": "."} | SLOW, 1),
    ("/infill", {"input_prefix": "Dear ", "input_suffix": "."} | SLOW, 1),
])  # fmt: skip
def test_at_every_event_of_other_streams(
    client: Client, path: str, body: dict[str, Any], events: int
) -> None:
    """Catches a route whose stream goes on for nobody, or holds its place."""
    fields = body if "diffusion" in body else body | {"diffusion": {"max_steps": 2}}
    for after in range(events):
        asked = fields | {"stream": True}
        assert asyncio.run(leave(client, asked, after, path, {})) >= after
        idle(client)  # by itself it would go on for minutes


FRAMES = {"diffusion": SLOW["diffusion"] | {"stream": "text"}}
OPEN = [{"text": "Dear "}, {"max_length": 3}, {"text": ", "}, {"max_length": 2}]


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/fim/completions", {"prompt": "Dear ", "suffix": "."}),
    ("/infill", {"input_prefix": "Dear ", "input_suffix": "."}),
    (EDIT, said(MESSAGE)), (APPLY, said(APPLIED)),
    ("/v1/canvas", {"segments": OPEN}),
    ("/v1/canvas", {"segments": [*OPEN[:1], {"choices": ["a", "b"]}]}),
])  # fmt: skip
def test_at_every_event_of_a_plans_stream(
    client: Client, path: str, body: dict[str, Any], count: Callable[[int, int], int]
) -> None:
    """Catches a draft at which a client cannot leave without the plan's requests running on, and
    a plan that then asks its next ones."""
    asked = body | FRAMES | {"stream": True, "seed": 1}
    for after in range(0, 6, count(2, 1)):
        before = nano().counters()
        assert asyncio.run(leave(client, asked, after, path, {})) >= after
        found = idle(client)  # by themselves they would go on for minutes
        # At first there are readings of one step, which may end by themselves.
        assert not after or found.ended_cancelled > before.ended_cancelled


def test_a_hundred_at_once(client: Client) -> None:
    """Catches a place, a page or a task that is lost with a connection."""
    before = nano().counters().ended_cancelled

    async def crowd() -> int:
        short = {"diffusion": {"max_steps": 1, "canvas_length": 32}}
        await asyncio.gather(
            *(leave(client, short | {"stream": k % 2 == 0}, (k % 2 == 0) * 2) for k in range(100))
        )
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(crowd()) == 0
    # Some are gone before their work has begun; it is dropped then.
    assert before < idle(client).ended_cancelled <= before + 100
