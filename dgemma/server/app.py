"""The app: routes, what surrounds them, and how errors are answered.

Knows which layers there are and in what order. Knows nothing about what a route does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, get_type_hints

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dgemma.errors import DGemmaError, nearest
from dgemma.server.apis import ROUTERS
from dgemma.server.errors import Refusal, crash, invalid, refusal, renamed, respond
from dgemma.server.middleware import AccessLog, AuthAndBody
from dgemma.server.model import Model
from dgemma.server.request_body import Body
from dgemma.server.service import Service
from dgemma.server.settings import Settings

log = logging.getLogger("dgemma.server")

ABOUT = """DiffusionGemma over HTTP, in the words of APIs that people have clients for.

Nothing is accepted and ignored: a field that cannot be honoured, or is not known, is refused with
400 and named, save what changes no result: `user`, `metadata`, `store`, `service_tier` and
`safety_identifier`, and, since prompts are always cached, `prompt_cache_key`, llama.cpp's
`cache_prompt` and `id_slot` on /infill and Anthropic's `cache_control` on /v1/messages."""


def create_app(model: Model, settings: Settings) -> FastAPI:
    """An ASGI app that serves a loaded model.

    When its lifespan ends, open requests are ended and the model is closed.
    """
    service = Service(model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.shut_down()

    app = FastAPI(
        title="dgemma", description=ABOUT, version="1", lifespan=lifespan,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(DGemmaError, _refused)
    app.add_exception_handler(Refusal, _refused)
    app.add_middleware(AuthAndBody, service=service)
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
    """Which route a path belongs to; "other": none."""
    own = [*app.routes, *(route for router in ROUTERS for route in router.routes)]
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


async def _refused(request: Request, error: Exception) -> Response:
    scope, refused = request.scope, refusal(error)
    if refused.status >= 500 and not isinstance(error, Refusal):
        said = crash(error, text=request.app.state.service.settings.log_text)
        log.error("request %s failed\n%s", scope["dgemma.request_id"], said)
    taken = get_type_hints(scope["endpoint"]).values() if "endpoint" in scope else ()
    for schema in taken:
        if isinstance(schema, type) and issubclass(schema, Body):
            refused = renamed(refused, schema.NAMES, json.loads(scope["dgemma.body"]))
    return respond(refused, scope)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(invalid(error.errors()), request.scope)


async def _unknown(request: Request, error: Exception) -> Response:
    """The framework's own errors: no such path, or not by this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        known = list(_document(request.app)["paths"])
        message = f"there is no {path[:100]}{nearest(path[:100], known)}"
        return respond(Refusal(404, message, code="not_found"), request.scope)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{path} takes {allowed}, not {request.method[:20]}"
        refused = Refusal(405, message, code="method_not_allowed", headers=headers)
        return respond(refused, request.scope)
    message = json.dumps(error.detail) if not isinstance(error.detail, str) else error.detail
    return respond(Refusal(error.status_code, message, headers=headers), request.scope)
