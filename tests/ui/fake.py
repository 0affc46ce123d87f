"""A scripted server: the page's files under their real headers, and answers that wait at gates.

Knows the events of dgemma's streams. Nothing sleeps: a test opens a gate when it has seen enough.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.sources import ROOT

UI = ROOT / "dgemma" / "ui"
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types dgemma",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PREVIEW = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'none'; frame-ancestors 'self'"
)
CUT = object()
"""In a script: the connection breaks here."""
WORDS = ("The", " cat", " sat", " on", " the", " mat", ",", " and", " then", " it", " slept", ".")


PROPS = {
    "version": "0.1.0", "device": "cpu", "dtype": "float32", "can": {},
    "tokens": {"end": [41], "control": [{"id": 40, "name": "<turn>"}, {"id": 41, "name": "<end>"}]},
    "examples": ["What is your name?", "What is 12+34?", "Who made you?", "A fourth one."],
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """In a script: what follows is sent when the test opens the gate of this name."""

    name: str


Script = list[Any]
"""Events (dicts), raw bytes, gates and `CUT`."""


@dataclass
class Fake:
    """What the server answers, to be set by a test; and what it was asked.

    Attributes:
        script: the answer of the next chats, which ends with `[DONE]` unless it is cut.
        refusals: status, headers and body of the next chats, before any script.
        key: that requests need.
        props: of /props.
        features: properties of the schema `Diffusion` in /openapi.json.
    """

    script: Script = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    key: str = ""
    props: dict[str, Any] = field(default_factory=lambda: dict(PROPS))
    features: tuple[str, ...] = ("stream",)
    width: int = 256
    render: Callable[[str], Any] = field(default=lambda text: f"<p>{text}</p>")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None

    def reset(self) -> None:
        """As it was in the beginning."""
        fresh = Fake(url=self.url, _loop=self._loop)
        self.__dict__.update(fresh.__dict__)

    def open(self, name: str) -> None:
        """Let the script pass a gate, now or when it gets there."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: self._gate(name).set())

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def play(self) -> AsyncIterator[bytes]:
        """The bytes of a stream."""
        script, gone = self.script, self.gone
        try:
            for item in script:
                if isinstance(item, Gate):
                    await self._gate(item.name).wait()
                elif item is CUT:
                    raise ConnectionAbortedError
                elif isinstance(item, bytes):
                    yield item
                else:
                    yield b"data: " + json.dumps(item).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            gone.set()
            raise

    async def chat(self, request: Request) -> Response:
        """The next script or refusal."""
        self.bodies.append(await request.json())
        if self.refusals:
            status, headers, body = self.refusals.pop(0)
            return JSONResponse(body, status, headers)
        return StreamingResponse(self.play(), media_type="text/event-stream")

    async def reply(self, request: Request) -> Response:
        """Every path."""
        path = request.url.path
        self.paths.append(path)
        if path == "/" or path.startswith("/ui/") and request.method == "GET":
            return page_file(path)
        if path == "/health":
            return JSONResponse({"status": "ok"})
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            error = {"message": "no such key", "type": "authentication_error", "code": None}
            return JSONResponse({"error": error}, 401)
        if path == "/v1/chat/completions":
            return await self.chat(request)
        if path == "/ui/render":
            return JSONResponse({"html": self.render((await request.json())["markdown"])})
        if path == "/v1/models":
            card = {"id": "fake", "max_model_len": 8192, "canvas_length": self.width}
            return JSONResponse({"object": "list", "data": [card]})
        if path == "/openapi.json":
            fields = {name: {} for name in self.features}
            schema = {"Diffusion": {"properties": fields}}
            return JSONResponse({"components": {"schemas": schema}})
        if path == "/props":
            return JSONResponse(self.props)
        return JSONResponse({"error": {"message": "no such path"}}, 404)


def page_file(path: str) -> Response:
    """A file of the page; `/ui/blank` is an empty page for tests of modules."""
    if path == "/ui/blank":
        html = "<!doctype html><html lang=en><title>blank</title><link rel=icon href='data:,'>"
        return Response(html, headers=HEADERS, media_type="text/html")
    file = UI / ("index.html" if path == "/" else path.removeprefix("/ui/"))
    if not file.is_file() or not file.resolve().is_relative_to(UI):
        return Response(status_code=404)
    headers = dict(HEADERS)
    if file.name == "preview.html":
        headers["Content-Security-Policy"] = PREVIEW
        del headers["X-Frame-Options"]
    return Response(file.read_bytes(), headers=headers, media_type=TYPES[file.suffix[1:]])


@contextmanager
def serving() -> Iterator[Fake]:
    """A server on a free port, in a thread."""
    fake = Fake()
    methods = ["GET", "POST"]
    app = Starlette(routes=[Route("/{path:path}", fake.reply, methods=methods)])
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def run() -> None:
        fake._loop = asyncio.get_running_loop()
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        ready.set()
        await server.main_loop()
        await server.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield fake
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


# -- scripts -------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **beside: Any) -> Any:
    """A chunk of the chat API."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "choices": [choice], **beside}


def status(state: str, encoded: int = 0, prompt: int = 0) -> Any:
    """A status."""
    more = {} if state == "queued" else {"encoded": encoded, "prompt_tokens": prompt}
    return chunk(diffusion={"type": "status", "state": state, "t_ms": 0.5, **more})


def frame(
    step: int, ids: list[int], state: str, entropy: list[int], *, canvas: int = 0,
    pieces: dict[int, Any] | None = None, **more: Any,
) -> Any:  # fmt: skip
    """A frame with ids."""
    said = {
        "type": "frame", "canvas": canvas, "try": 0, "step": step, "max_steps": 48,
        "mean_entropy": sum(entropy) / max(1, len(entropy)) / 64,
        "accepted": state.count("1"), "renoised": state.count("0"), "pinned": state.count("2"),
        "ids": ids, "state": state, "entropy": entropy, "pieces": pieces or {},
        "t_ms": 20.0 * step + 20, "temperature": round(0.8 - 0.4 * step / 48, 4), **more,
    }  # fmt: skip
    return chunk(diffusion=said)


def ending(text: str, *, steps: int = 12, tokens: int = 256, seed: int = 7) -> Script:
    """The commit, the text and the last chunks."""
    commit = {"type": "commit", "canvas": 0, "try": 0, "tokens": tokens, "steps": steps,
              "whole": True, "stop_reason": "converged", "t_ms": 20.0 * steps + 5}  # fmt: skip
    spent = {"canvases": 1, "steps": steps, "canvas_tokens": tokens,
             "tokens_per_step": tokens / steps}  # fmt: skip
    return [
        chunk(diffusion=commit), chunk({"content": text}),
        chunk(reason="stop", diffusion_usage=spent, timings={"total_ms": 1234.5}, seeds=[seed]),
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}},
    ]  # fmt: skip


def run_of(width: int = 256, passes: int = 12, *, gates: bool = False, seed: int = 0) -> Script:
    """A run that looks like one: noise that settles from left to right, then an answer.

    With `gates`, a gate "pass N" stands before each frame but the first.
    """
    draw = random.Random(seed)
    final = [k % len(WORDS) for k in range(width)]
    told: set[int] = set()
    script: Script = [chunk({"role": "assistant"}), status("queued"), status("encoding", 9, 9)]
    for step in range(passes):
        ids, state, entropy = [], "", []
        share = (step + 1) / passes
        for k in range(width):
            settled = draw.random() < share + 0.4 * (1 - 2 * k / width) or share == 1
            ids.append(final[k] if settled else draw.randrange(12, 40))
            state += "1" if settled else "0"
            entropy.append(draw.randrange(0, 12) if settled else draw.randrange(20, 240))
        new = {k: WORDS[k] if k < len(WORDS) else f" w{k}" for k in ids if k not in told}
        told |= set(new)
        if gates and step > 0:
            script.append(Gate(f"pass {step + 1}"))
        script.append(frame(step, ids, state, entropy, pieces=new))
    text = "".join(WORDS[k] for k in final)
    return script + ([Gate("end")] if gates else []) + ending(text, steps=passes, tokens=width)
