"""Routes that take the body as it has been parsed, and check the fields of large ones aside.

Knows the framework's routes. Knows no field.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from dgemma.server.json_body import ParsedBody
from dgemma.server.request_body import Body

SCOPE = "dgemma.body"
"""The name under which a scope has its `ParsedBody`; it is missing if nothing was sent."""


class ParsedRequest(Request):
    """A request whose body has been received and parsed by the layers around the routes."""

    async def body(self) -> bytes:
        """Something if a body was sent; its bytes are gone."""
        return b"{}" if SCOPE in self.scope else b""

    async def json(self) -> Any:
        """The body's value, or a model that has checked it."""
        sent: ParsedBody = self.scope[SCOPE]
        return sent.value if sent.checked is None else sent.checked


class BodyRoute(APIRoute):
    """A route whose body is parsed once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def handle_parsed(http: Request) -> Response:
            sent: ParsedBody | None = http.scope.get(SCOPE)
            schema = schema_of(http.scope)
            if schema is not None and sent is not None and sent.large:
                run, owner = http.app.state.aside.run, http.scope["dgemma.owner"]
                sent.checked = await run(owner, _checked, schema, sent.value)
            return await handle(ParsedRequest(http.scope, http.receive))

        return handle_parsed


def schema_of(scope: Scope) -> type[Body] | None:
    """The schema of the body that a request's route takes."""
    hints = get_type_hints(scope["endpoint"]) if "endpoint" in scope else {}
    found = (one for one in hints.values() if isinstance(one, type) and issubclass(one, Body))
    return next(found, None)


def _checked(schema: type[Body], value: Any) -> Body:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
