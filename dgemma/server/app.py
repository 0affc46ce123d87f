"""The app: the routes, the layers around them, and the framework's own errors.

Knows the layers and their order. Knows nothing about any route.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dgemma.server import page
from dgemma.server.apis import ROUTERS
from dgemma.server.aside import Aside
from dgemma.server.compiler import Compiler
from dgemma.server.errors import Refusal, invalid, respond
from dgemma.server.middleware import AccessLog, AuthAndBody
from dgemma.server.model import Model
from dgemma.server.renderer import Renderer, RenderThread
from dgemma.server.service import Service
from dgemma.server.settings import Settings

ABOUT = """DiffusionGemma over HTTP, behind the APIs that people have clients for.

Nothing is accepted and ignored: a field that is unknown or cannot be honoured is refused with 400
and named. The only exceptions change no result: `user`, `metadata`, `store`, `service_tier` and
`safety_identifier`, and, since prompts are always cached, `prompt_cache_key`, llama.cpp's
`cache_prompt` and `id_slot` on /infill and Anthropic's `cache_control` on /v1/messages."""


_TEXT = "this model reads and writes text alone"
_CHAT = "use /v1/chat/completions"
_STATELESS = "nothing is kept between requests; send each conversation as a whole"
_DOCUMENT = "read /openapi.json; pages that show it load scripts from elsewhere"
ABSENT = {
    "/v1/responses": _CHAT, "/api/chat": _CHAT, "/api/generate": "use /v1/completions",
    "/completion": "use /v1/completions", "/v1/completion": "use /v1/completions",
    "/v1/embeddings": "this model makes no embeddings",
    "/embedding": "this model makes no embeddings",
    "/v1/images": _TEXT, "/v1/audio": _TEXT, "/v1/videos": _TEXT, "/v1/realtime": _TEXT,
    "/v1/moderations": "there is no classifier here; ask /v1/decisions",
    "/v1/rerank": "there is no ranking here; ask /v1/decisions",
    "/v1/files": _STATELESS, "/v1/batches": _STATELESS, "/v1/messages/batches": _STATELESS,
    "/v1/assistants": _STATELESS, "/v1/threads": _STATELESS, "/v1/conversations": _STATELESS,
    "/v1/fine_tuning": "the server does not train",
    "/docs": _DOCUMENT, "/redoc": _DOCUMENT,
}  # fmt: skip
"""Paths of other servers, with all below them, and the reason for their absence or the remedy."""

ALIKE = 0.75
"""How alike the ends of two paths are, 0 to 1, if one may be meant for the other."""


def create_app(
    model: Model, settings: Settings, compiler: Compiler | None = None,
    renderer: Renderer | None = None,
) -> FastAPI:  # fmt: skip
    """An ASGI app that serves a loaded model.

    Args:
        compiler: compiles the grammars of requests in processes of their own. None: they are
            compiled in this one, which is for people who trust each other.
        renderer: renders the Markdown of requests. None: a thread does.

    When its lifespan ends, open requests are ended and the model is closed.
    """
    service = Service(model, settings, compiler)
    aside = Aside(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.shut_down()
        await app.state.renderer.close()

    app = FastAPI(
        title="dgemma", description=ABOUT, version="1", lifespan=lifespan,
        redirect_slashes=False, docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service, app.state.aside = service, aside
    app.state.renderer = renderer or RenderThread(aside)
    app.state.page = page.load() if settings.page else {}
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes += page.ROUTES
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_middleware(AuthAndBody, service=service, aside=aside)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # the clients of OpenAI and of Anthropic send a dozen of their own
            expose_headers=["x-request-id", "request-id", "retry-after"],
        )
    app.add_middleware(AccessLog, service=service, route_of=_routes(app))
    return app


def _routes(app: FastAPI) -> Callable[[str], str]:
    """A function that gives the route of a path; "other" if it has none."""
    own = [*(route for router in ROUTERS for route in router.routes), *app.routes]
    known = [(route.path_regex, route.path) for route in own if isinstance(route, Route)]

    def route_of(path: str) -> str:
        return next((name for pattern, name in known if pattern.match(path)), "other")

    return route_of


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the framework's own 422, which is never sent."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema


def instead_of(path: str, known: Iterable[str]) -> str:
    """What may help whoever asks for a path that is not there: the reason, or one spelt alike."""
    for absent, why in ABSENT.items():
        if path == absent or path.startswith(absent + "/"):
            return f": {why}"
    by_end = {one.removeprefix("/v1"): one for one in known}  # the version makes all of them alike
    found = difflib.get_close_matches(path.removeprefix("/v1"), by_end, n=1, cutoff=ALIKE)
    return f" (did you mean {by_end[found[0]]!r}?)" if found else ""


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(invalid(error.errors()), request.scope)


async def _unknown(request: Request, error: Exception) -> NoReturn:
    """The framework's own errors: no such path, or not by this method."""
    assert isinstance(error, HTTPException)
    path, status, headers = request.url.path, error.status_code, dict(error.headers or {})
    if status == 404:
        message = (
            f"there is no {path[:100]}{instead_of(path[:100], _document(request.app)['paths'])}"
        )
        raise Refusal(404, message, code="not_found")
    if status == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{path} takes {allowed}, not {request.method[:20]}"
        raise Refusal(405, message, code="method_not_allowed", headers=headers)
    raise Refusal(status, str(error.detail), headers=headers)
