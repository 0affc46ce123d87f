"""What holds on each of the paths: whose requests they are, which model, odd values, hang-ups."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dgemma.events import EventStream
from dgemma.server.app import create_app
from dgemma.server.auth import Keys
from dgemma.server.settings import Settings
from dgemma.types import Request
from tests.support.bodies import BODIES, STREAMED, TOOLS, USED
from tests.support.client import Client, Recorder, Written, serve
from tests.support.nano import nano

pytestmark = pytest.mark.model

DECIDED = ("/v1/decisions", "/v1/systemone")

HUGE = 10**30
ODD: tuple[Any, ...] = (None, True, -1, HUGE, 0.5, "", "\x00<turn|>", [], [None], {"": None})


@pytest.mark.parametrize("path", BODIES)
def test_requests_belong_to_the_key(path: str) -> None:
    """Catches a route past the queue's fairness: its requests would be nobody's."""
    keys = Keys.of(["one-secret", "two-secret"])
    model = Recorder()
    client = Client(create_app(model, Settings(keys=keys)), {"x-api-key": "two-secret"})
    assert client.post(path, BODIES[path]).status_code == 200
    assert {request.owner for request in model.asked} == {keys.owner("two-secret")}
    wrong = client.post(path, BODIES[path] | {"model": "../nano"})
    assert wrong.status_code == 404 and "nano" in wrong.json()["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
def test_odd_values_are_no_accident(path: str, count: Callable[[int, int], int]) -> None:
    """Catches a value of another type, or at an edge, that ends as an error of the server's.

    In the default run each field is sent every third of the odd values.
    """
    step = count(3, 1)
    client, body = serve(), BODIES[path]
    document = client.get("/openapi.json").json()
    name = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = document["components"]["schemas"][name["$ref"].rsplit("/", 1)[-1]]["properties"]
    assert set(body) <= set(fields)
    for number, field in enumerate(fields):
        for value in ODD[number % step :: step]:
            response = client.post(path, body | {field: value})
            assert response.status_code in (200, 400, 404), (field, value, response.text)
            if response.status_code != 200:
                assert response.json()["error"]["message"], (field, value)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand within a body."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


RICH: dict[str, dict[str, Any]] = {
    "/infill": {"input_extra": [{"filename": "a", "text": "b"}], "samplers": ["top_k"],
                "response_fields": ["content", "timings/predicted_n"]},
    "/v1/messages": {"messages": USED, "tools": TOOLS, "tool_choice": {"type": "auto"},
                     "thinking": {"type": "enabled", "budget_tokens": 3},
                     "system": [{"type": "text", "text": "x"}]},
    "/v1/decisions": {}, "/v1/systemone": {}, "/v1/edit/completions": {},
    "/v1/canvas": {"return": {"trace": True, "alternatives": 2}, "strength": 0.1, "segments": [
        {"text": "a"}, {"role": "seed", "text": "Mira", "noise": 0.5}, {"choices": ["!"]},
        {"min_length": 1, "max_length": 1, "allowed_token_ids": [300]}, {"tokens": [301]},
    ]},
}  # fmt: skip


@pytest.mark.parametrize("path", RICH)
def test_odd_values_within_objects(path: str) -> None:
    """The same for what stands deeper: blocks, tools, questions, segments."""
    client, body = serve(), BODIES[path] | RICH[path]
    assert client.post(path, body).status_code == 200
    for *way, last in filter(lambda way: len(way) > 1, leaves(body)):
        for value in (None, -1, HUGE, "", [None]):
            changed = copy.deepcopy(body)
            inner: Any = changed
            for key in way:
                inner = inner[key]
            inner[last] = value
            response = client.post(path, changed)
            assert response.status_code in (200, 400), (way, last, value, response.text)


async def hang_up(app: Any, path: str, body: dict[str, Any], started: list[Written]) -> None:
    """Call a path and be gone as soon as the model has begun."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode()}
        while not started:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "scheme": "http",
        "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 10)


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/v1/decisions", "/v1/canvas"])
def test_a_plan_that_is_shut_down_says_so(path: str) -> None:
    """Catches a 500 for what is no fault, where a client should try again elsewhere."""

    def begin(request: Request) -> EventStream:
        client.app.state.service.end_all()
        stream = Written()
        stream.close()
        return stream

    for fields in ({}, {"stream": True}) if path in STREAMED else ({},):
        client = serve(Recorder(begin))
        ended = client.post(path, BODIES[path] | fields)
        assert ended.status_code == (200 if fields else 503)
        assert '"code":"cancelled"' in ended.text


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/fim/completions", BODIES["/v1/fim/completions"]),
    ("/v1/canvas", {"segments": [{"text": "Mira has a "}, {}, {"text": "."}]}),
])  # fmt: skip
def test_a_plan_may_finish_within_the_grace(path: str, body: dict[str, Any]) -> None:
    """Catches a plan that fails at its second round, because new callers are turned away."""
    whole = Recorder()
    expected = serve(whole).post(path, body | {"seed": 1}).json()

    def begin(request: Request) -> EventStream:
        client.app.state.service.turn_away()
        return nano().submit(request)

    model = Recorder(begin)
    client = serve(model)
    found = client.post(path, body | {"seed": 1})
    assert found.status_code == 200, found.text
    assert len(model.asked) == len(whole.asked) > 1
    assert found.json()["usage"] == expected["usage"]


@pytest.mark.parametrize("path, stream", [
    *((path, False) for path in BODIES), *((path, True) for path in STREAMED),
])  # fmt: skip
def test_when_the_client_is_gone_its_requests_end(path: str, stream: bool) -> None:
    """Catches work that goes on for nobody, and a place that is never given back."""
    started: list[Written] = []

    def begin(request: Request) -> EventStream:
        started.append(Written())
        return started[-1]

    app = create_app(Recorder(begin), Settings())
    asyncio.run(hang_up(app, path, BODIES[path] | ({"stream": True} if stream else {}), started))
    assert started and all(one.closed for one in started)
    assert app.state.service.open_requests == 0


@pytest.mark.parametrize("path", [path for path in BODIES if path not in DECIDED])
def test_the_log_has_the_tokens_of_an_answer(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches an API whose answers are in the metrics but not in the log."""
    caplog.set_level(logging.INFO, "dgemma.server")
    assert serve().post(path, BODIES[path]).status_code == 200
    line = json.loads(caplog.records[-1].message)
    assert line["prompt_tokens"] > 0 and line["completion_tokens"] >= 0
