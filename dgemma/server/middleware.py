"""What happens to every HTTP request before a route sees it, and after.

Request id, key, a place among the open ones, the body's size and JSON, one line in the log, counts.
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
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgemma.server.errors import Refusal, refusal, respond
from dgemma.server.keys import key_of
from dgemma.server.service import Service
from dgemma.server.sse import ClientGone

log = logging.getLogger("dgemma.server")

BODY_S = 60.0
"""Seconds in which a body must have come."""

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key."""

_ID = re.compile(r"[\w.:-]{1,64}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Gate:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["dgemma.request_id"] = request_id
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._admit(scope, receive, noting, headers)
        except ClientGone:
            status = status or 499
        except Exception as error:
            refused = refusal(error)
            if refused.status >= 500 and not isinstance(error, Refusal):
                log.exception("request %s failed", request_id)
            if status:  # the reply had begun: it is cut off, which a client sees
                raise
            await respond(error, scope["path"])(scope, receive, noting)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        service, path = self.service, scope["path"]
        owner = service.settings.keys.owner(key_of(headers))
        if path in OPEN_PATHS or _preflight(scope, headers):
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
        with service.admitted(owner):
            service.metrics.open.set(service.open_requests)
            most = service.settings.limits.body_bytes
            try:
                async with asyncio.timeout(BODY_S):
                    body = await read_body(receive, headers, most)
            except TimeoutError as error:
                raise Refusal(408, f"the body did not come within {BODY_S:.0f} s") from error
            if body and "json" in headers.get("content-type", "json"):
                check_json(body, service.settings.limits.json_depth)
            await self.app(scope, _again(body, receive), send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        metrics = self.service.metrics
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS") else "other"
        metrics.requests.labels(route, method, str(status or 499)).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.open.set(self.service.open_requests)
        line = {
            "request_id": scope["dgemma.request_id"], "method": method, "route": route,
            "status": status or 499, "ms": round(1000 * seconds, 1),
            "owner": scope.get("dgemma.owner", ""), **scope.get("dgemma.log", {}),
        }  # fmt: skip
        log.info("%s", json.dumps(line, ensure_ascii=False))


def _preflight(scope: Scope, headers: Headers) -> bool:
    """A browser asks before it sends a key; it cannot send one then."""
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


async def read_body(receive: Receive, headers: Headers, most: int) -> bytes:
    """A whole body.

    Raises:
        Refusal: 413, it is larger than allowed; whatever else was sent is not read.
        ClientGone: the client hung up.
    """
    too_large = Refusal(
        413, f"the body is larger than this server's {most} bytes; send less",
        code="body_too_large", headers={"Connection": "close"},
    )  # fmt: skip
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:19]) > most:
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more for the layers below; then whatever comes."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _no_number(text: str) -> NoReturn:
    raise Refusal(400, f"the body holds {text}, which is no JSON number", code="invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def check_json(body: bytes, depth: int) -> None:
    """Refuse what is no JSON, and what Python's own reader takes beyond JSON.

    Raises:
        Refusal: 400, with what is wrong.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
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
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        one, level = waiting.pop()
        if isinstance(one, dict):
            waiting += [(key, level) for key in one] + [(v, level + 1) for v in one.values()]
        elif isinstance(one, list):
            waiting += [(v, level + 1) for v in one]
        elif isinstance(one, str) and not one.isascii() and _SURROGATE.search(one):
            raise Refusal(
                400, "the body holds a lone surrogate, which is no text; send valid Unicode",
                code="invalid_json",
            )  # fmt: skip
        if level > depth + 1:
            raise _too_deep(depth)


def _too_deep(depth: int) -> Refusal:
    return Refusal(
        400, f"the body is nested deeper than this server's {depth} levels", code="invalid_json"
    )
