"""One HTTP request and its response: the caller, the log line, the work begun, the answer sent.

Knows the service and the connection. Knows nothing about paths or the fields of an API.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from dgemma.server import accounting, sse
from dgemma.server.aside import Aside
from dgemma.server.errors import body_of, dialect_of, logged
from dgemma.server.json_reply import json_reply
from dgemma.server.pieces import End, PieceReader
from dgemma.server.renderer import Renderer
from dgemma.server.service import Service
from dgemma.types import Request

T = TypeVar("T")

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""The response of a route that can stream, for the OpenAPI document."""


class Reply(Protocol):
    """An answer that is being made."""

    async def whole(self) -> Mapping[str, Any]:
        """The plain reply."""
        ...

    def events(self) -> AsyncGenerator[bytes, None]:
        """The same as a stream."""
        ...


class Exchange:
    """A request of an API and its response.

    Attributes:
        service: the service behind the app; `aside`: for work that takes long.
        renderer: makes HTML of Markdown.
        owner: the key's owner; see `Request.owner`.
        log: fields of its line in the log.
    """

    def __init__(self, http: HTTPRequest) -> None:
        self._http = http
        self.service: Service = http.app.state.service
        self.aside: Aside = http.app.state.aside
        self.renderer: Renderer = http.app.state.renderer
        self.owner: str = http.scope["dgemma.owner"]
        self.log: dict[str, Any] = http.scope.setdefault("dgemma.log", {})
        self._readers: list[PieceReader] = []

    def begin(self, model: str | None, **texts: Any) -> str:
        """Check the model's name; the log gets the user's texts if the settings say so.

        Raises:
            Refusal: 404, there is no such model here.
        """
        if self.service.settings.log_text:
            self.log.update(texts)
        return self.service.look_up(model)

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Do plain work in a thread; see `Service.in_thread`."""
        return await self.service.in_thread(self.owner, work, *given)

    async def start(
        self, requests: Sequence[Request], *, every: int = 1, one_call: bool = False
    ) -> list[PieceReader]:
        """Start requests together, or none of them; see `PieceReader`.

        Raises:
            DGemmaError: the first that cannot be started.
        """
        service = self.service
        requests = [service.model.frontend.closed(request)[0] for request in requests]
        streams = await service.submit(requests, owner=self.owner)
        readers = [
            PieceReader(
                service.facts, request, stream, every=every, one_call=one_call,
                most_steps=service.most_steps(request),
            )
            for request, stream in zip(requests, streams, strict=True)
        ]  # fmt: skip
        self._readers += readers
        return readers

    def count(self, ends: Sequence[End], share: int | None = None) -> None:
        """Add answers to the metrics and to the log; `share` of them have one prompt, None: all."""
        accounting.count(self.service.metrics, ends, share)
        spent = accounting.usage(ends, share)
        self.log |= {name: spent[name] for name in ("prompt_tokens", "completion_tokens")}

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """The result of some work, which is cancelled when the client hangs up."""
        return await sse.unless_gone(self._http, work)

    async def reply(self, work: Awaitable[Mapping[str, Any]]) -> Response:
        """Send the result of some work."""
        return await self.unless_gone(self._written(work))

    async def _written(self, work: Awaitable[Mapping[str, Any]]) -> Response:
        return await json_reply(self.aside, self.owner, await work)

    async def send(self, reply: Reply, *, stream: bool | None, done: bool = True) -> Response:
        """Send a reply as a whole or as a stream; the requests that were started end with it.

        Args:
            done: whether OpenAI's last line ends the stream.
        """
        if stream:
            source = self._with_errors(reply.events(), done)
            return sse.EventStreamResponse(source, self.service.settings.heartbeat_s, self.close)
        with contextlib.closing(self):
            return await self.reply(reply.whole())

    def close(self) -> None:
        """End the requests: a client may be gone before its reply has begun."""
        for reader in self._readers:
            reader.close()

    async def _with_errors(
        self, source: AsyncGenerator[bytes, None], done: bool
    ) -> AsyncGenerator[bytes, None]:
        """The same events; a failure is the last of them, since the status has been sent."""
        scope = self._http.scope
        try:
            async for event in source:
                yield event
        except Exception as error:
            refused = logged(error, scope, text=self.service.settings.log_text)
            self.log["error"] = refused.code or refused.status
            dialect = dialect_of(scope["path"])
            name = "error" if dialect == "anthropic" else None
            yield sse.event(body_of(refused, dialect), name)
        finally:
            await source.aclose()
        if done:
            yield sse.DONE


async def _exchange(http: HTTPRequest) -> Exchange:
    """A coroutine: the framework runs plain functions in a pool of threads, which may be full."""
    return Exchange(http)


async def _service(http: HTTPRequest) -> Service:
    return Exchange(http).service


HTTPExchange = Annotated[Exchange, Depends(_exchange)]
TheService = Annotated[Service, Depends(_service)]
