"""The layers around all routes: request id, log line and counts; key, body and a place.

Knows ASGI. Knows nothing about any route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, get_type_hints

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgemma.server.auth import key_of
from dgemma.server.errors import Refusal, dialect_of, logged, renamed, respond
from dgemma.server.limits import walk
from dgemma.server.request_body import Body
from dgemma.server.service import Service
from dgemma.server.sse import ClientGone
from dgemma.text.tokenizer import SURROGATE

log = logging.getLogger("dgemma.server")

BODY_S = 60.0
"""Seconds in which a body must arrive."""

DRAIN_S = 1.0
"""Seconds in which the rest of a refused body is read, so that its sender can read the reply: if a
connection is closed on unread bytes it is reset, and the reply is lost."""

READERS = 256
"""Bodies that are read at a time."""

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
"""Methods that are counted by their names."""

OPEN_PATHS = frozenset({"/health", "/metrics"})
"""Paths that are read without an API key; the route of /metrics asks for an admin key."""

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class AccessLog:
    """The outer layer: a request's id, its line in the log, its counts; a HEAD as a GET without
    the reply's body."""

    def __init__(self, app: ASGIApp, service: Service, route_of: Callable[[str], str]) -> None:
        """`route_of` gives the route of a path, for the log and the counts."""
        self.app = app
        self.service = service
        self.route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["dgemma.request_id"] = request_id
        status, method = 0, scope["method"]
        names = ["x-request-id"]
        if dialect_of(scope["path"]) == "anthropic":
            names.append("request-id")

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name in names:
                    MutableHeaders(scope=message)[name] = request_id
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        inner = dict(scope, method="GET") if method == "HEAD" else scope
        try:
            await self.app(inner, receive, send_and_note)
        finally:
            self._record(inner, method, status or 499, time.perf_counter() - began)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        metrics = self.service.metrics
        route = self.route_of(scope["path"])
        method = method if method in METHODS else "other"
        metrics.requests.labels(route, method, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.open.set(self.service.open_requests)
        line = {
            "request_id": scope["dgemma.request_id"], "method": method, "route": route,
            "status": status, "ms": round(1000 * seconds, 1),
            "owner": scope.get("dgemma.owner", ""), **scope.get("dgemma.log", {}),
        }  # fmt: skip
        log.info("%s", json.dumps(line, ensure_ascii=False))


class AuthAndBody:
    """The inner layer: checks the key, reads the body, takes a place; answers all errors."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self._reading: dict[asyncio.Timeout, None] = {}  # in the order in which they began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._admit(scope, receive, send_and_note)
        except ClientGone:
            pass
        except Exception as error:
            refused = logged(error, scope, text=self.service.settings.log_text)
            if begun:  # the client sees that the reply is cut off
                raise Cut from None
            await respond(_renamed(refused, scope), scope)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, headers = self.service, Headers(scope=scope)
        owner = service.settings.keys.owner(key_of(headers))
        if scope["path"] in OPEN_PATHS and scope["method"] != "POST":
            owner = owner or ""
        if owner is None:
            raise Refusal(
                401, "a valid API key is needed; send Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["dgemma.owner"] = owner
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["dgemma.body"] = body = await self._body(receive, headers)
        with service.admitted(owner):
            service.metrics.open.set(service.open_requests)
            if body:
                check_json(body, service.settings.limits.json_depth)
            await self.app(scope, _again(body, receive), send)

    async def _body(self, receive: Receive, headers: Headers) -> bytes:
        """A request's body. If too many are being read, the oldest of them is refused."""
        if len(self._reading) >= READERS:
            oldest = next(iter(self._reading))
            del self._reading[oldest]
            if not oldest.expired():
                oldest.reschedule(0)
        limit = asyncio.timeout(BODY_S)
        try:
            async with limit:
                self._reading[limit] = None
                return await read_body(receive, headers, self.service.settings.limits.body_bytes)
        except TimeoutError as error:
            raise Refusal(
                408, f"the body must come within {BODY_S:.0f} s, sooner if many are sent at "
                "once; send it again",
            ) from error  # fmt: skip
        finally:
            self._reading.pop(limit, None)


class Cut(Exception):
    """A reply that had begun was broken off; the log says why."""


def _renamed(refused: Refusal, scope: Scope) -> Refusal:
    """An error with the name under which the request sent its field."""
    if refused.param is None or "endpoint" not in scope:
        return refused
    for schema in get_type_hints(scope["endpoint"]).values():
        if isinstance(schema, type) and issubclass(schema, Body):
            refused = renamed(refused, schema.NAMES, json.loads(scope["dgemma.body"]))
    return refused


async def read_body(receive: Receive, headers: Headers, most: int) -> bytes:
    """A whole body.

    Raises:
        Refusal: 413, it is larger than allowed; its rest is thrown away for `DRAIN_S`.
        ClientGone: the client hung up.
    """
    too_large = Refusal(
        413, f"the body is larger than this server's {most} bytes; send less",
        code="body_too_large", headers={"Connection": "close"},
    )  # fmt: skip
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:19]) > most:
        if "expect" not in headers:  # a client that asks first has sent nothing yet
            await _drain(receive)
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > most:
            if more:
                await _drain(receive)
            raise too_large
    return b"".join(parts)


async def _drain(receive: Receive) -> None:
    """Read the rest of a body, for a while."""
    more = True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while more:
                more = (await receive()).get("more_body", False)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more for the layers below; then further messages."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _broken(why: str) -> Refusal:
    return Refusal(400, f"the body {why}", code="invalid_json")


def _not_a_number(text: str) -> NoReturn:
    raise _broken(f"holds {text}, which is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_a_number(text[:40])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _broken(f"has the field {twice!a} twice in one object; give it once")
    return found


def check_json(body: bytes, depth: int) -> None:
    """Refuse a body that is not JSON, though Python's own reader may take it.

    Raises:
        Refusal: 400, with the reason.
    """
    too_deep = _broken(f"is nested deeper than this server's {depth} levels")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_not_a_number,
                           parse_float=_finite, object_pairs_hook=_once)  # fmt: skip
    except UnicodeDecodeError as error:
        raise _broken(f"is not UTF-8 (byte {error.start}); send valid UTF-8") from error
    except RecursionError as error:
        raise too_deep from error
    except json.JSONDecodeError as error:
        raise _broken(f"is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _broken("holds too long a number") from error
    for one, level in walk(value):
        if isinstance(one, str) and not one.isascii() and SURROGATE.search(one):
            raise _broken("holds a lone surrogate, which is not text; send valid Unicode")
        if level > depth + 1:
            raise too_deep
