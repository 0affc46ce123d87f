"""What went wrong, as a status and a body in the shape of the API spoken.

The only place that knows HTTP's codes. Knows nothing about routes beyond which API a path speaks.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from starlette.responses import JSONResponse
from starlette.types import Scope

from dgemma.errors import (
    ContextOverflow,
    DGemmaError,
    EngineError,
    InvalidRequest,
    MissingExtra,
    Overloaded,
    TemplateError,
    TokenizerError,
)

Dialect = Literal["openai", "anthropic", "plain"]

DIALECTS: dict[str, Dialect] = {
    "/v1/messages": "anthropic",
    "/infill": "plain",
    "/tokenize": "plain",
    "/detokenize": "plain",
    "/apply-template": "plain",
    "/health": "plain",
    "/metrics": "plain",
}
"""Which API a path speaks; "openai" where it is not named, and for what lies below a path."""

RETRY_AFTER_S = 1
"""What a client is told to wait when there is no room."""

_TYPES: dict[int, dict[Dialect, str]] = {
    status: {"openai": openai, "anthropic": anthropic, "plain": plain}
    for status, openai, anthropic, plain in (
        (400, "invalid_request_error", "invalid_request_error", "invalid_request_error"),
        (401, "invalid_request_error", "authentication_error", "authentication_error"),
        (404, "invalid_request_error", "not_found_error", "not_found_error"),
        (405, "invalid_request_error", "invalid_request_error", "invalid_request_error"),
        (408, "timeout_error", "timeout_error", "timeout_error"),
        (413, "invalid_request_error", "request_too_large", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error", "server_error"),
        (503, "server_error", "overloaded_error", "unavailable_error"),
    )
}
"""Status -> the error's type in the words of each API. OpenAI's own 401 and 404 are
"invalid_request_error" as well, told apart by their `code`."""

LONGEST = 1000
"""Characters of a message or of a field's name; from longer ones the middle is left out."""

_NAME = re.compile(r"(?!(?:body|str|int|float|bool)$)[A-Za-z_]\w*")
"""A field in pydantic's path to a fault, which also names the branches of unions."""


class Refusal(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: HTTP's.
        message: for people; names the field and the remedy.
        param: the field, as a path with dots.
        code: for programs.
        headers: to be sent along; with 429 and 503 always `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = shortened(message)
        super().__init__(self.message)
        self.status = status
        self.param = None if param is None else shortened(param)
        self.code = code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers["Retry-After"] = str(RETRY_AFTER_S)


def shortened(text: str) -> str:
    """A text of at most `LONGEST` characters: the field stands at its begin, the remedy at its
    end."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


def busy(message: str) -> Refusal:
    """No room now; the same request may succeed later."""
    return Refusal(429, message, code="rate_limit_exceeded")


def closing() -> Refusal:
    """The server is about to stop."""
    return Refusal(503, "the server is shutting down; try again later", code="shutting_down")


def refusal(error: BaseException) -> Refusal:
    """Any exception as what a client is told; the insides of an unexpected one stay here."""
    if isinstance(error, Refusal):
        return error
    text = str(error)
    if isinstance(error, ContextOverflow):
        return Refusal(400, text, param=error.field, code="context_length_exceeded")
    if isinstance(error, InvalidRequest):
        return Refusal(400, text, param=error.field)
    if isinstance(error, Overloaded):
        return busy(text)
    if isinstance(error, (TemplateError, TokenizerError, MissingExtra)):
        return Refusal(400, text, code="not_available")
    if isinstance(error, EngineError):
        return Refusal(500, text, code="engine_error")
    if isinstance(error, DGemmaError):
        return Refusal(500, "the model cannot be used; see the server's log")
    return Refusal(500, "something went wrong inside the server; see its log")


def renamed(refused: Refusal, names: Mapping[str, Sequence[str]], sent: Any) -> Refusal:
    """An error in the words of the request: its field by the name under which it was sent.

    Args:
        names: a field -> the names that a request may give it, as paths with dots.
        sent: the request's body.
    """
    field = refused.param
    if field is None or field not in names:
        return refused
    name = next((one for one in names[field] if _holds(sent, one)), names[field][0])
    with_errors = refused.message
    if with_errors.startswith(field):
        with_errors = name + with_errors[len(field) :]
    return Refusal(
        refused.status, with_errors, param=name, code=refused.code, headers=refused.headers
    )


def _holds(value: Any, path: str) -> bool:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value is not None


def dialect_of(path: str) -> Dialect:
    """Which API a path speaks."""
    for known, dialect in DIALECTS.items():
        if path == known or path.startswith(known + "/"):
            return dialect
    return "openai"


def body_of(refused: Refusal, dialect: Dialect, request_id: str | None = None) -> dict[str, Any]:
    """The body of an error, or what an error event of a stream holds.

    Args:
        request_id: for Anthropic's clients, which look for it here.
    """
    known = refused.status if refused.status in _TYPES else 400 if refused.status < 500 else 500
    kind = _TYPES[known][dialect]
    if dialect == "anthropic":
        found = {"type": "error", "error": {"type": kind, "message": refused.message}}
        return found if request_id is None else found | {"request_id": request_id}
    if dialect == "plain":
        return {"error": {"code": refused.status, "message": refused.message, "type": kind}}
    return {
        "error": {
            "message": refused.message, "type": kind, "param": refused.param, "code": refused.code,
        }
    }  # fmt: skip


def respond(error: BaseException, scope: Scope) -> JSONResponse:
    """The response to a request, given by its scope, that failed."""
    refused = refusal(error)
    body = body_of(refused, dialect_of(scope["path"]), scope["dgemma.request_id"])
    return JSONResponse(body, status_code=refused.status, headers=refused.headers)


def crash(error: BaseException, *, text: bool = False) -> str:
    """What the log tells of an exception that nobody expected: its kind, and where.

    Args:
        text: its message as well, and that of its causes; they may hold what a user wrote.
    """
    if text:
        return "".join(traceback.format_exception(error))
    where = "".join(traceback.format_tb(error.__traceback__))
    return f"{where}{type(error).__qualname__} (its message is told with --log-text)"


def invalid(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """What pydantic found, told by the first of its complaints."""
    first = min(errors, key=lambda e: e["type"] == "missing", default=None)
    if first is None:
        return Refusal(400, "the request is malformed")
    parts = [part for part in first["loc"] if isinstance(part, int) or _NAME.fullmatch(part)]
    where = ".".join(str(part) for part in parts)
    where = re.sub(r"\.(\d+)", r"[\1]", where)
    ctx = first.get("ctx") or {}
    if first["type"] in ("unknown_field", "refused_field"):
        name = ".".join(part for part in (where, str(ctx.get("field", ""))) if part)
        return Refusal(400, f"{name}: {first['msg']}", param=name, code=first["type"])
    if not where:
        return Refusal(
            400, "the body must be a JSON object, sent with content-type: application/json"
        )
    if first["type"] == "missing":
        return Refusal(400, f"{where} is missing; give it", param=where, code="missing_field")
    said = str(first["msg"])
    said = said[:1].lower() + said[1:]
    return Refusal(400, f"{where}: {said}", param=where, code="invalid_value")
