"""Server-sent events: their bytes, heartbeats in silence, and an end when the client is gone.

Knows the wire format. Knows nothing about the meaning of an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
"""The last event of OpenAI's streams."""

HEARTBEAT = b": still here\n\n"
"""A comment, which every client skips."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event; `name` for APIs that name them."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


async def with_heartbeats(
    source: AsyncGenerator[bytes, None], every_s: float
) -> AsyncGenerator[bytes, None]:
    """The same events, with a comment after every `every_s` seconds without one.

    When this generator is closed, or its task is cancelled, `source` is closed.
    """
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait((waiting,), timeout=every_s)
            if not done:
                yield HEARTBEAT
                continue
            finished, waiting = waiting, None
            try:
                piece = finished.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await waiting
        await source.aclose()


class EventStreamResponse(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        heartbeat_s: float,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """`ended` is called at the end of the response, also if the client is gone."""
        self._ended = ended
        self._source = with_heartbeats(source, heartbeat_s)
        super().__init__(
            self._source,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()  # now, not when it is collected as garbage
            if self._ended is not None:
                self._ended()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled when the client hangs up.

    Raises:
        ClientGone: the client has hung up; nobody waits for a reply.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class ClientGone(Exception):
    """The client hung up before its reply was there."""


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
