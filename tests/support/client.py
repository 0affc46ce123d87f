"""What tests of the server share: an app over nano, called without a socket, and its streams read.

Also a model that keeps what it was asked, and streams whose events are written by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import BaseRoute

from dgemma.engine.sequence import Sequence as EngineSequence
from dgemma.events import EventQueue, EventStream
from dgemma.llm import LLM
from dgemma.server.app import create_app
from dgemma.server.pieces import Piece, PieceReader
from dgemma.server.settings import Settings
from dgemma.types import Event, Output, Request
from tests.support.nano import nano

QUESTION = [{"role": "user", "content": "Who are you?"}]
ASK: dict[str, Any] = {"messages": QUESTION, "seed": 1, "diffusion": {"max_steps": 4}}


class Client:
    """ToolUse an app; each call is a whole exchange."""

    def __init__(self, app: FastAPI, headers: dict[str, str] | None = None) -> None:
        self.app = app
        self.headers = headers or {}

    def call(self, method: str, path: str, **what: Any) -> httpx.Response:
        """One request and its reply."""

        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=self.headers
            ) as client:
                return await client.request(method, path, **what)

        return asyncio.run(exchange())

    def get(self, path: str, **what: Any) -> httpx.Response:
        """GET."""
        return self.call("GET", path, **what)

    def post(self, path: str, body: Any = None, **what: Any) -> httpx.Response:
        """POST of JSON, or of `content`."""
        if body is not None:
            what["json"] = body
        return self.call("POST", path, **what)

    def ask(self, **fields: Any) -> httpx.Response:
        """A short chat request with some fields changed."""
        return self.post("/v1/chat/completions", ASK | fields)


@cache
def routes() -> list[BaseRoute]:
    """The routes of an app. They know no model, and FastAPI takes long to make them."""
    return create_app(nano(), Settings()).routes


def serve(model: Any = None, **settings: Any) -> Client:
    """A client of an app over nano, or another model."""
    app = create_app(model or nano(), Settings(**settings))
    app.router.routes = routes()
    return Client(app)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of OpenAI's stream, whose last line was [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    blocks = [block for block in response.text.split("\n\n") if block]
    assert blocks.pop() == "data: [DONE]"
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def deltas(found: Sequence[dict[str, Any]], field: str, number: int = 0) -> list[Any]:
    """What a stream's chunks hold in one field of their deltas."""
    parts = [one for event in found for one in event["choices"] if one["index"] == number]
    return [one["delta"][field] for one in parts if one["delta"].get(field)]


class Recorder:
    """A model that keeps what it is asked, and may answer by itself."""

    def __init__(self, answer: Callable[[Request], EventStream] | None = None) -> None:
        llm: LLM = nano()
        self.asked: list[Request] = []
        self.defaults, self.frontend, self.facts = llm.defaults, llm.frontend, llm.facts
        self.counters, self.close = llm.counters, llm.close
        self.calibration, self.about = llm.calibration, llm.about
        self._answer = answer

    def submit(self, request: Request) -> EventStream:
        """As `LLM.submit`."""
        self.asked.append(request)
        return (self._answer or nano().submit)(request)


class Written(EventStream):
    """A stream of events that were written beforehand; without an end it waits to be closed.

    Attributes:
        closed: whether it was.
    """

    def __init__(self, events: Sequence[Event] = ()) -> None:
        queue = EventQueue()
        for event in events:
            queue.put(event)
        super().__init__(queue, self._cancel_written)
        self.closed, self._queue = False, queue

    def _cancel_written(self) -> None:
        self.closed = True
        self._queue.put(Event(type="done", output=Output(finish_reason="cancelled")))


def written(
    request: Request, commits: Sequence[Sequence[int] | Event], *, reason: Any = "stop",
    error: str | None = None,
) -> Written:  # fmt: skip
    """The stream that the engine's own bookkeeping makes of given commits.

    Args:
        commits: the ids of canvases of three steps; or events, of which commits go the same way.
    """
    frontend = nano().frontend
    params = replace(request.params, seed=0, max_tokens=None)
    request = replace(request, params=params, thought=frontend.thought(request))
    seq = EngineSequence(request, width=1, context_length=10**6, reader=frontend.reader(request))
    told: list[Event] = []
    for commit in commits:
        if seq.done is not None:
            break
        event = commit if isinstance(commit, Event) else Event(type="commit", ids=tuple(commit))
        ids = list(event.ids)
        if event.type == "frame":
            told.append(replace(event, deltas=seq.draft(ids, nano().facts.end_ids)))
        else:
            seq.scores += event.scores
            ids = [0] * seq.emitted + ids
            prefix, whole = seq.commit_prefix, seq.commit
            told.append(whole(ids, False, 3) if event.whole else prefix(list(event.ids), 3))
    seq.finish(reason, error)
    assert seq.done is not None
    return Written([*told, seq.done])


async def collected(reader: PieceReader) -> list[Piece]:
    """All pieces."""
    return [piece async for piece in reader.pieces()]


def numbers(client: Client) -> dict[str, float]:
    """All samples of /metrics."""
    text = client.get("/metrics").text
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
