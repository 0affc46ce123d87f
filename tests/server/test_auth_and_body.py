"""What surrounds every route: bodies, places, threads, the log, web pages, HEAD, request ids."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any, cast

import pytest

from dgemma.errors import EngineError
from dgemma.events import EventStream
from dgemma.server import readers
from dgemma.server.auth import Keys
from dgemma.server.settings import ServerLimits
from dgemma.types import Request
from tests.support.client import ASK, QUESTION, Client, Recorder, numbers, serve
from tests.support.nano import nano

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
KEY = "sk-right-key-1"
JSON = {"content-type": "application/json"}
PAGE = "https://page.example"


@pytest.mark.parametrize("kind", ["application/JSON", "Application/Json; charset=UTF-8", "a/b+J"])
@pytest.mark.parametrize(("content", "said"), [
    (b'{"\\udfff": 1}', "lone surrogate"),
    (json.dumps(ASK).encode("utf-16"), "not UTF-8"),
    (json.dumps(ASK).encode("utf-8-sig"), "not JSON"),
])  # fmt: skip
def test_a_body_is_checked_whatever_its_kind_is_called(
    kind: str, content: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a body that goes past the checks because of an upper-case letter in a header."""
    refused = serve().post(CHAT, content=content, headers={"content-type": kind})
    assert refused.status_code == 400 and said in refused.json()["error"]["message"]
    assert "Traceback" not in caplog.text


def test_a_field_given_twice_is_refused() -> None:
    """Catches a value that is taken although another one stands beside it."""
    body = json.dumps(ASK)[:-1] + ', "seed": 2}'
    refused = serve().post(CHAT, content=body.encode(), headers=JSON)
    assert refused.status_code == 400 and "'seed' twice" in refused.json()["error"]["message"]


def test_what_is_echoed_is_short() -> None:
    """Catches a reply as long as the nonsense that was sent, and a slow search in it."""
    client = serve()
    for body in (ASK | {"x" * 200_000: 1}, ASK | {"seed": "x" * 200_000},
                 ASK | {"diffusion": {"y" * 200_000: 1}}, ASK | {"tool_choice": {"z" * 90_000: 1}},
                 ASK | {"guided_choice": ["x" * 90_000] * 2, "stop": "x"}):  # fmt: skip
        refused = client.post(CHAT, body)
        assert refused.status_code == 400 and len(refused.text) < 2500


def test_a_crash_leaves_no_text_of_users_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Catches an exception's message in the log, which may hold what a user wrote."""

    texts = ["my secret", "what a user wrote"]

    def crash(request: Request) -> EventStream:
        try:
            raise KeyError(texts[1])
        except KeyError as error:
            raise RuntimeError(texts[0]) from error

    for allowed in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "dgemma.server"):
            assert serve(Recorder(crash), log_text=allowed).ask().status_code == 500
        assert "RuntimeError" in caplog.text and "in crash" in caplog.text
        assert [text in caplog.text for text in texts] == [allowed] * 2


def test_a_failing_engine_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a 500 that says "see the log", where nothing is."""

    def fail(request: Request) -> EventStream:
        raise EngineError("broken")

    with caplog.at_level(logging.INFO, "dgemma.server"):
        assert serve(Recorder(fail)).ask().status_code == 500
    assert "EngineError" in caplog.text and "in fail" in caplog.text


def test_types_of_errors_are_each_apis_own() -> None:
    """Catches an error's type that a client does not know: OpenAI has one for 401, 404 and 400."""
    client = serve(keys=Keys.of([KEY]))
    wrong = {"model": "x", "messages": QUESTION, "max_tokens": 1, "content": "x"}
    for path, statuses in {
        CHAT: ("invalid_request_error", "invalid_request_error"),
        "/v1/messages": ("authentication_error", "not_found_error"),
        "/tokenize": ("authentication_error", "not_found_error"),
    }.items():
        body = {name: wrong[name] for name in (
            ("model", "content") if path == "/tokenize" else
            ("model", "messages", "max_tokens"))}  # fmt: skip
        for headers, kind in zip(({}, {"x-api-key": KEY}), statuses, strict=True):
            refused = client.post(path, body, headers=headers)
            assert refused.status_code == (404 if headers else 401)
            assert refused.json()["error"]["type"] == kind


# -- places and threads ----------------------------------------------------------------------------


async def slow_body(app: Any, sent: asyncio.Event) -> int:
    """A request of which one byte comes; the status it gets."""
    status = 0

    async def receive() -> dict[str, Any]:
        if not sent.is_set():
            sent.set()
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
        "headers": [], "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return status


def test_a_body_that_is_not_here_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches six sockets that send one byte each and turn everyone else away."""
    monkeypatch.setattr(readers, "READERS", 3)
    client = serve(limits=ServerLimits(open_requests=1))

    async def scene() -> list[int]:
        slow = []
        for _ in range(5):
            sent = asyncio.Event()
            slow.append(asyncio.create_task(slow_body(client.app, sent)))
            await sent.wait()
        assert client.app.state.service.open_requests == 0
        reply = await asyncio.to_thread(client.ask)
        assert reply.status_code == 200
        # Those that have waited longest made room for others: two, and for the last one a third.
        done = await asyncio.gather(*slow[:2])
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return done

    assert asyncio.run(scene()) == [408, 408]


def test_work_aside_leaves_threads_to_others() -> None:
    """Catches a pool that is full of somebody's grammars, so that not even /health answers."""
    client = serve()
    service = client.app.state.service

    async def scene() -> list[int]:
        free = threading.Event()
        jobs = [asyncio.create_task(service.in_thread("a", free.wait)) for _ in range(100)]
        try:
            await asyncio.sleep(0)
            done = await asyncio.wait_for(asyncio.to_thread(quick), 20)
            await asyncio.wait_for(service.shut_down(), 20)
        finally:
            free.set()
            await asyncio.gather(*jobs)
        return done

    def quick() -> list[int]:
        return [client.get(path).status_code for path in ("/health", "/v1/models", "/metrics")]

    closed: list[bool] = []
    service.model = Recorder()
    service.model.close = lambda: closed.append(True)
    assert asyncio.run(scene()) == [200] * 3 and closed == [True]


@pytest.mark.fault("R M4")
@pytest.mark.parametrize(("version", "headers", "said"), [
    ("1.1", {"transfer-encoding": "chunked", "content-length": "2"}, "send one of them"),
    ("1.0", {"transfer-encoding": "chunked"}, "send Content-Length"),
    ("9.9", {"content-length": "2"}, "send HTTP/1.1"),
])  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/infill", "/health"])
def test_ambiguous_framing_is_refused(
    path: str, version: str, headers: dict[str, str], said: str
) -> None:
    """Catches a body whose end a proxy in front sees elsewhere than we do: what follows would be
    another request to one of the two."""
    client = serve()

    async def older(scope: Any, receive: Any, send: Any) -> None:
        await client.app(scope | {"http_version": version}, receive, send)

    refused = Client(cast(Any, older)).post(path, content=b"{}", headers=JSON | headers)
    assert refused.status_code == 400 and refused.headers["connection"] == "close"
    assert said in refused.json()["error"]["message"]


# -- the log, HEAD, ids ----------------------------------------------------------------------------


def test_a_refused_request_counts_for_its_route(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a 429 of which nobody knows the route."""
    keys, limits = Keys.of([KEY]), ServerLimits(body_bytes=100, open_per_key=1)
    client = serve(keys=keys, admin_keys=keys, limits=limits)
    owner = client.app.state.service.settings.keys.owner(KEY)
    key = {"x-api-key": KEY}
    with caplog.at_level(logging.INFO, "dgemma.server"):
        client.post(CHAT, ASK)
        client.post(CHAT, content=b"{", headers=key)
        client.post(CHAT, content=b" " * 101, headers=key)
        with client.app.state.service.admitted(owner):
            client.post(CHAT, content=b"{}", headers=key)
        client.get("/v1/models/org/name", headers={"x-api-key": "wrong-key"})
        client.get("/nowhere", headers=key)
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["route"], line["status"]) for line in lines] == [
        (CHAT, 401), (CHAT, 400), (CHAT, 413), (CHAT, 429), ("/v1/models/{name:path}", 401),
        ("other", 404),
    ]  # fmt: skip
    client.headers = key
    assert numbers(client)[f"dgemma_http_requests_total['{CHAT}', '429', 'POST']"] == 1


def test_head_is_get_without_a_body() -> None:
    """Catches a balancer that asks HEAD /health and takes the server for dead."""
    client = serve()
    for path, status in (("/health", 200), ("/v1/models", 200), (CHAT, 405), ("/nowhere", 404)):
        got, head = client.get(path), client.call("HEAD", path)
        assert (got.status_code, head.status_code) == (status, status)
        assert head.content == b"" and head.headers["content-length"] == str(len(got.content))
    client.app.state.service.turn_away()
    assert client.call("HEAD", "/health").status_code == 503
    assert numbers(client)["dgemma_http_requests_total['/health', '200', 'HEAD']"] == 1


def test_every_busy_reply_says_when_to_come_again() -> None:
    """Catches a 503 without Retry-After, which the table of docs/serving.md promises."""
    client = serve()
    client.app.state.service.turn_away()
    for refused in (client.get("/health"), client.ask()):
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"


def test_anthropics_clients_find_the_request_id() -> None:
    """Catches a request id under OpenAI's name alone."""
    client = serve(keys=Keys.of([KEY]))
    refused = client.post("/v1/messages", {"messages": QUESTION, "max_tokens": 1})
    assert refused.status_code == 401
    ids = {refused.headers["request-id"], refused.headers["x-request-id"],
           refused.json()["request_id"]}  # fmt: skip
    assert len(ids) == 1 and next(iter(ids)).startswith("req_")
    client.headers = {"x-api-key": KEY, "x-request-id": "mine"}
    reply = client.post("/v1/messages", {"messages": QUESTION, "max_tokens": 1, "seed": -1})
    assert (reply.status_code, reply.json()["request_id"]) == (400, "mine")
    openai = client.ask(seed=-1)
    assert "request-id" not in openai.headers and set(openai.json()) == {"error"}
    strange = client.get("/health", headers={"x-request-id": "éé".encode("latin-1")})
    assert strange.headers["x-request-id"].startswith("req_")


# -- web pages -------------------------------------------------------------------------------------


def test_web_pages_may_send_what_their_clients_send(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a preflight that fails for headers of OpenAI's and Anthropic's own clients, and
    one that leaves no trace."""
    client = serve(cors_origins=(PAGE,), keys=Keys.of([KEY]))
    wanted = "authorization,x-stainless-os,anthropic-dangerous-direct-browser-access"
    asking = {"origin": PAGE, "access-control-request-method": "POST",
              "access-control-request-headers": wanted}  # fmt: skip
    with caplog.at_level(logging.INFO, "dgemma.server"):
        allowed = client.call("OPTIONS", CHAT, headers=asking)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-headers"] == wanted
    line = json.loads(caplog.records[0].message)
    assert (line["method"], line["route"], line["status"]) == ("OPTIONS", CHAT, 200)
    assert line["request_id"] == allowed.headers["x-request-id"]
    for headers in ({}, {"x-api-key": KEY}):
        refused = Client(client.app, {"origin": PAGE, **headers}).ask(seed=-1)
        assert refused.status_code == (400 if headers else 401)
        assert refused.headers["access-control-allow-origin"] == PAGE
        exposed = refused.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "request-id", "retry-after"} <= set(exposed)


def test_keys_share_no_cached_prompt() -> None:
    """Catches a prompt that another key's request has made quick: it could be guessed by time."""
    client = serve(keys=Keys.of([KEY, "another-key"]))
    long = [{"role": "user", "content": "Copy this: one two three. " * 40}]
    encoded = []
    for key in (KEY, KEY, "another-key", "another-key"):
        before = nano().counters().encoded_tokens
        reply = client.post(CHAT, ASK | {"messages": long}, headers={"x-api-key": key})
        assert reply.status_code == 200
        encoded.append(nano().counters().encoded_tokens - before)
    assert encoded[0] == encoded[2] > 300 and encoded[1] == encoded[3] < 64
