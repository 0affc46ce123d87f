"""The layers around all routes: request id, log line and counts; key, body and a place.

Knows ASGI. Knows nothing about any route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgemma.server.aside import Aside
from dgemma.server.auth import key_of
from dgemma.server.body_route import SCOPE, schema_of
from dgemma.server.errors import Refusal, dialect_of, logged, renamed, respond
from dgemma.server.hosts import check_host
from dgemma.server.json_body import ParsedBody, is_large, parse_json
from dgemma.server.log import shown_path
from dgemma.server.memory import Trimmer
from dgemma.server.page import is_page
from dgemma.server.readers import Reader, Readers
from dgemma.server.service import Service
from dgemma.server.sse import ClientGone

log = logging.getLogger("dgemma.server")

BODY_S = 60.0
"""Seconds in which a body must arrive."""

DRAIN_S = 1.0
"""Seconds in which the rest of a refused body is read, so that its sender can read the reply: if a
connection is closed on unread bytes it is reset, and the reply is lost."""

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
            "path": shown_path(scope["path"]), "status": status, "ms": round(1000 * seconds, 1),
            "owner": scope.get("dgemma.owner", ""), **scope.get("dgemma.log", {}),
        }  # fmt: skip
        log.info("%s", json.dumps(line, ensure_ascii=False), extra={"fields": line})


class AuthAndBody:
    """The inner layer: checks the key, reads the body, takes a place; answers all errors."""

    def __init__(self, app: ASGIApp, service: Service, aside: Aside) -> None:
        self.app = app
        self.service = service
        self._aside = aside
        self._readers = Readers()
        self._trimmer = Trimmer()

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
        check_framing(scope, headers)
        check_host(headers, service.settings.hosts)
        owner = service.settings.keys.owner(key_of(headers))
        path, posted = scope["path"], scope["method"] == "POST"
        if (path in OPEN_PATHS or is_page(path)) and not posted:
            owner = owner or ""
        if owner is None:
            raise Refusal(
                401, "a valid API key is needed; send Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["dgemma.owner"] = owner
        if not posted:
            await self.app(scope, receive, send)
            return
        with ExitStack() as place:
            sent = await self._body(scope, receive, headers, place)
            if sent is not None:
                scope[SCOPE] = sent
                if sent.large:
                    place.callback(self._trimmer.later)
            await self.app(scope, receive, send)

    async def _body(
        self, scope: Scope, receive: Receive, headers: Headers, place: ExitStack
    ) -> ParsedBody | None:
        """The body; None: it is empty. When it is here, the request takes its place."""
        service, owner = self.service, scope["dgemma.owner"]
        limits, client = service.settings.limits, scope.get("client") or [""]
        whose = owner or str(client[0])
        try:
            async with self._readers.reading(whose, BODY_S) as reader:
                body = await read_body(receive, headers, limits.body_bytes, reader)
                reader.whole()
                place.enter_context(service.admitted(owner))
                service.metrics.open.set(service.open_requests)
                if not body:
                    return None
                if not is_large(body):
                    return ParsedBody(parse_json(body, limits), large=False)
                value = await self._aside.run(whose, parse_json, body, limits)
                return ParsedBody(value, large=True)
        except TimeoutError as error:
            raise Refusal(
                408, f"the body must come within {BODY_S:.0f} s, sooner if many are sent at "
                "once; send it again",
            ) from error  # fmt: skip


class Cut(Exception):
    """A reply that had begun was broken off; the log says why."""


def _renamed(refused: Refusal, scope: Scope) -> Refusal:
    """An error with the name under which the request sent its field."""
    schema = None if refused.param is None or SCOPE not in scope else schema_of(scope)
    return refused if schema is None else renamed(refused, schema.NAMES, scope[SCOPE].value)


def check_framing(scope: Scope, headers: Headers) -> None:
    """Refuse a request whose end another server would see elsewhere (RFC 9112, section 6.1).

    Raises:
        Refusal: 400, and the connection is closed.
    """
    version, chunked = scope.get("http_version", "1.1"), "transfer-encoding" in headers
    if chunked and version == "1.0":
        why = "has Transfer-Encoding in HTTP/1.0; send Content-Length"
    elif chunked and "content-length" in headers:
        why = "has Content-Length and Transfer-Encoding; send one of them"
    elif version[:1] not in ("1", "2", "3"):
        why = f"is of HTTP/{version}; send HTTP/1.1"
    else:
        return
    message = f"the request {why}"
    raise Refusal(400, message, code="bad_request", headers={"Connection": "close"})


async def read_body(receive: Receive, headers: Headers, most: int, reader: Reader) -> bytearray:
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
    if not (length.isascii() and length.isdigit()) or int(length[:19]) > most:
        if "expect" not in headers:  # a client that asks first has sent nothing yet
            await _drain(receive)
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        reader.add(len(part))
        body += part
        more = message.get("more_body", False)
        if len(body) > most:
            if more:
                await _drain(receive)
            raise too_large
    return body


async def _drain(receive: Receive) -> None:
    """Read the rest of a body, for a while."""
    more = True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while more:
                more = (await receive()).get("more_body", False)
