"""The service behind all routes: the model, the settings, and the open requests.

Knows how a request is started without holding up the event loop, and how all are ended. Knows
nothing about paths or bodies.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from anyio import to_thread

from dgemma.errors import ContextOverflow, EngineError, nearest
from dgemma.events import EventStream
from dgemma.frontend import Messages, ModelFacts
from dgemma.params import RELEASED
from dgemma.server.compiler import Compiler
from dgemma.server.errors import Refusal, busy, closing
from dgemma.server.limits import check_messages, check_schema
from dgemma.server.metrics import Metrics
from dgemma.server.model import Model
from dgemma.server.settings import Settings
from dgemma.server.threads import FairThreads
from dgemma.types import Request

T = TypeVar("T")

ALIVE_S = 5.0
"""Seconds in which a thread must be free, or the server is not healthy."""


class Service:
    """One model being served.

    Attributes:
        model: the loaded model; `settings`: how it is served.
        facts: canvas, context, tokenizer.
        metrics: the counts.
        closing: whether new HTTP requests are turned away; those that are open go on.
        ended: whether the open ones are ended, too.
    """

    def __init__(self, model: Model, settings: Settings, compiler: Compiler | None = None) -> None:
        """
        Args:
            compiler: compiles grammars aside; it is closed with the service. None: the threads
                compile them.
        """
        self.model = model
        self.settings = settings
        self.facts: ModelFacts = model.frontend.facts
        self.metrics = Metrics(model.counters)
        self.closing = self.ended = False
        self._open: Counter[str] = Counter()
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._compiler = compiler
        self._threads = FairThreads()
        self._lock = threading.Lock()  # requests are started in threads

    @property
    def name(self) -> str:
        """The model's name in replies."""
        return self.settings.names[0]

    def look_up(self, name: str | None) -> str:
        """A model's name, checked; it is only compared, never used as a path.

        Raises:
            Refusal: 404, there is no such model here.
        """
        if name is not None and name not in self.settings.names:
            hint = nearest(name[:100], self.settings.names)
            raise Refusal(
                404, f"model {name[:100]!r} is not served here{hint}; see GET /v1/models",
                param="model", code="model_not_found",
            )  # fmt: skip
        return self.name

    @contextmanager
    def admitted(self, owner: str) -> Iterator[None]:
        """Hold a place for one request.

        Raises:
            Refusal: 429, all are taken; 503, the server is about to stop.
        """
        limits = self.settings.limits
        if self.closing:
            raise closing()
        if self._open.total() >= limits.open_requests:
            raise busy(f"{limits.open_requests} requests are open already; try again soon")
        if self._open[owner] >= limits.open_per_key:
            raise busy(f"{limits.open_per_key} requests of this key are open; wait for one")
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    @property
    def open_requests(self) -> int:
        """Requests that are worked on."""
        return self._open.total()

    async def in_thread(self, owner: str, work: Callable[..., T], *given: Any) -> T:
        """Do plain work (templates, tokenizers, grammars) in a thread, so that streams flow on."""
        return await self._threads.run(owner, work, *given)

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Refuse a prompt above the server's limit.

        Raises:
            ContextOverflow: it is longer.
        """
        most = self.settings.limits.prompt_tokens
        if most is not None and len(ids) > most:
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens, more than this server's {most}; shorten it",
                field="prompt",
            )

    def chat_ids(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False, chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:  # fmt: skip
        """The prompt of a conversation.

        Raises:
            InvalidRequest, TemplateError, Refusal: it is malformed, or it or its tools pass a
                limit.
        """
        check_messages(messages, self.settings.limits)
        if tools:
            check_schema(tools, "tools", self.settings.limits)
        return self.model.frontend.chat_ids(messages, tools, thinking, chat_template_kwargs)

    def most_steps(self, request: Request) -> int:
        """Denoising steps that a canvas of a request may take."""
        once = request.canvas is not None and request.canvas.read_only
        usual = 1 if once else self.model.defaults.max_steps or RELEASED.max_steps
        most = request.params.max_steps or usual
        assert most is not None
        return most

    def race(self, asked: int | None) -> int:
        """Canvases of an answer that are denoised side by side; `asked` is the request's number."""
        return asked or self.model.defaults.race or 1

    async def check_threads(self, owner: str) -> None:
        """Pass a piece of work that does nothing through the threads.

        Raises:
            Refusal: 503, it does not come back within `ALIVE_S`.
        """
        try:
            async with asyncio.timeout(ALIVE_S):
                await self._threads.run(owner, int, first=True)
        except TimeoutError as error:
            raise Refusal(
                503, f"the threads that prepare requests have been busy for {ALIVE_S:g} s; send "
                "requests elsewhere, or restart the server if this lasts", code="overloaded",
            ) from error  # fmt: skip

    async def submit(self, requests: Sequence[Request], owner: str) -> list[EventStream]:
        """Start requests together, or none of them.

        Args:
            owner: whose they are; see `Request.owner`.

        Raises:
            DGemmaError: the first that cannot be started.
        """
        for request in requests:
            self.check_prompt(request.token_ids)
        asked = [r if r.owner == owner else replace(r, owner=owner) for r in requests]
        for request in asked:
            await self._compile(request)
        return await self._threads.run(owner, self._start, asked, undo=close_all)

    async def _compile(self, request: Request) -> None:
        """Have a request's grammar compiled aside, if it is not known yet."""
        frontend = self.model.frontend
        if self._compiler is None or (wanted := frontend.grammar(request)) is None:
            return

        def known() -> bool:
            return frontend.grammar(request) is None

        owner = request.owner
        packed = await self._compiler.compile(owner, *wanted, known)
        if packed is not None:
            await self.in_thread(owner, frontend.keep_grammar, owner, *wanted, packed)

    async def check_schema_aside(self, schema: Any, owner: str) -> None:
        """Have a schema checked aside that no answer is kept to.

        Raises:
            InvalidRequest: it cannot be kept to, or not be checked.
        """
        if self._compiler is not None:
            await self._compiler.compile(owner, "schema", schema)

    def _start(self, requests: Sequence[Request]) -> list[EventStream]:
        streams: list[EventStream] = []
        try:
            for request in requests:
                streams.append(self.model.submit(request))
                with self._lock:
                    self._streams.add(streams[-1])
            if self.ended:
                raise closing()
        except BaseException as error:
            close_all(streams)
            if isinstance(error, EngineError) and self.ended:
                raise closing() from error
            raise
        return streams

    def turn_away(self) -> None:
        """Take no further HTTP request; a plan that is open may still ask its next requests."""
        self.closing = True

    def end_all(self) -> None:
        """End every open request; each stream sends an error."""
        self.closing = self.ended = True
        with self._lock:
            streams = list(self._streams)
        close_all(streams)

    async def shut_down(self) -> None:
        """End all open requests and close the model."""
        self.end_all()
        if self._compiler is not None:
            await self._compiler.close()
        await to_thread.run_sync(self.model.close)
        self._threads.close()


def close_all(streams: Iterable[EventStream]) -> None:
    """End requests."""
    for stream in streams:
        stream.close()
