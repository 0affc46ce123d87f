"""What happens to every HTTP request before a route sees it, and after.

Request id, key, the body's size and JSON, a place among the open ones, one line in the log, counts.
Knows ASGI. Knows nothing about what a route does.
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
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgemma.server.auth import key_of
from dgemma.server.errors import Refusal, crash, dialect_of, refusal, respond
from dgemma.server.limits import walk
from dgemma.server.service import Service
from dgemma.server.sse import ClientGone

log = logging.getLogger("dgemma.server")

BODY_S = 60.0
"""Seconds in which a body must have come."""

DRAIN_S = 1.0
"""Seconds in which more of a body is read than it may have, so that its sender can read why it was
refused: a connection that is closed on what was sent is reset, and the reply is lost with it."""

READERS = 256
"""Bodies that are read at a time; each may have as many bytes as a body may have."""

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
"""Methods that are counted by their names."""

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key."""

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


class AccessLog:
    """The outermost layer: a request's id, its line in the log, its counts; HEAD is a GET whose
    reply has no body."""

    def __init__(self, app: ASGIApp, service: Service, route_of: Callable[[str], str]) -> None:
        """`route_of` gives the route that a path belongs to, for the log and the counts."""
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

        async def noting(message: Message) -> None:
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
            await self.app(inner, receive, noting)
        finally:
            self._note(inner, method, status or 499, time.perf_counter() - began)

    def _note(self, scope: Scope, method: str, status: int, seconds: float) -> None:
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
    """The layer around the routes: key, body, a place; and an answer to what goes wrong."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self._reading: dict[asyncio.Timeout, None] = {}  # in the order in which they began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._admit(scope, receive, noting)
        except ClientGone:
            pass
        except Exception as error:
            if refusal(error).status >= 500 and not isinstance(error, Refusal):
                said = crash(error, text=self.service.settings.log_text)
                log.error("request %s failed\n%s", scope["dgemma.request_id"], said)
            if begun:  # the reply is cut off, which a client sees
                raise Cut from None
            await respond(error, scope)(scope, receive, noting)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, headers = self.service, Headers(scope=scope)
        owner = service.settings.keys.owner(key_of(headers))
        if scope["path"] in OPEN_PATHS:
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
        """A request's body. Of too many that are being read the one that began first gives way."""
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
                408, f"the body must come within {BODY_S:.0f} s, sooner where many are sent at "
                "once; send it again",
            ) from error  # fmt: skip
        finally:
            self._reading.pop(limit, None)


class Cut(Exception):
    """A reply that had begun was broken off; the log has said why."""


async def read_body(receive: Receive, headers: Headers, most: int) -> bytes:
    """A whole body.

    Raises:
        Refusal: 413, it is larger than allowed; what else comes within `DRAIN_S` is thrown away.
        ClientGone: the client hung up.
    """
    too_large = Refusal(
        413, f"the body is larger than this server's {most} bytes; send less",
        code="body_too_large", headers={"Connection": "close"},
    )  # fmt: skip
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:19]) > most:
        if "expect" not in headers:  # who asks first has sent nothing yet
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
    """Throw away what comes of a body, for a while."""
    more = True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while more:
                more = (await receive()).get("more_body", False)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more for the layers below; then whatever comes."""
    with_errors = False

    async def replay() -> Message:
        nonlocal with_errors
        if with_errors:
            return await receive()
        with_errors = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _no_number(text: str) -> NoReturn:
    raise Refusal(400, f"the body holds {text}, which is no JSON number", code="invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Refusal(
            400, f"the body has the field {twice!a} twice in one object; give it once",
            code="invalid_json",
        )  # fmt: skip
    return found


def check_json(body: bytes, depth: int) -> None:
    """Refuse what is no JSON, and what Python's own reader takes beyond JSON.

    Raises:
        Refusal: 400, with what is wrong.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite,
                           object_pairs_hook=_once)  # fmt: skip
    except UnicodeDecodeError as error:
        raise Refusal(
            400, f"the body is no UTF-8 (byte {error.start}); send valid UTF-8",
            code="invalid_json",
        ) from error  # fmt: skip
    except RecursionError as error:
        raise _too_deep(depth) from error
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body is no JSON: {error.msg} at character {error.pos}", code="invalid_json"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise Refusal(400, "the body holds too long a number", code="invalid_json") from error
    for one, level in walk(value):
        if isinstance(one, str) and not one.isascii() and _SURROGATE.search(one):
            raise Refusal(
                400, "the body holds a lone surrogate, which is not text; send valid Unicode",
                code="invalid_json",
            )  # fmt: skip
        if level > depth + 1:
            raise _too_deep(depth)


def _too_deep(depth: int) -> Refusal:
    return Refusal(
        400, f"the body is nested deeper than this server's {depth} levels", code="invalid_json"
    )
