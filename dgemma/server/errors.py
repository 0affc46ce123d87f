"""Errors as a status and a body in the shape of the path's API.

The only place that knows HTTP's codes. Knows nothing about routes beyond the API of a path.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
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

log = logging.getLogger("dgemma.server")

Dialect = Literal["openai", "anthropic", "plain"]

DIALECTS: dict[str, Dialect] = {
    "/v1/messages": "anthropic",
    "/infill": "plain",
    "/tokenize": "plain",
    "/detokenize": "plain",
    "/apply-template": "plain",
    "/health": "plain",
    "/metrics": "plain",
    "/props": "plain",
    "/ui": "plain",
}
"""The API of a path and of all paths below it; "openai" for all others."""

RETRY_AFTER_S = 1
"""Seconds that a client must wait if there is no room."""

STATUSES = {
    400: "the request cannot be honoured; the message names the field",
    401: "no API key, or a wrong one",
    404: "no such model or path",
    405: "the path takes another method",
    408: "the body did not come in time",
    413: "the body is too large",
    421: "the request is for another host's name; see --allowed-host",
    429: "too many requests are open; see Retry-After",
    500: "the server failed",
    503: "the server is shutting down",
}
"""The statuses of errors and their meanings."""

_TYPES: dict[Dialect, dict[int, str]] = {
    "openai": {},
    "anthropic": {
        401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
        500: "api_error", 503: "overloaded_error",
    },
    "plain": {
        401: "authentication_error", 403: "permission_error", 404: "not_found_error",
        503: "unavailable_error",
    },
}  # fmt: skip
"""Status -> the error's type in the words of one API alone; all others are the same in all."""

LONGEST = 1000
"""Characters of a message or of a field's name; from longer ones the middle is left out."""

_NAME = re.compile(r"(?!(?:body|str|int|float|bool)$)[A-Za-z_]\w*")
"""A field in pydantic's path to a fault, which also names the branches of unions."""


class Refusal(Exception):
    """A request that is answered by an error.

    Attributes:
        status: HTTP's.
        message: for people; names the field and the remedy.
        param: the field, as a path with dots.
        code: for programs.
        headers: of the response; with 429 and 503 always `Retry-After`.
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
    """A text of at most `LONGEST` characters, without its middle: the field is at the beginning,
    the remedy at the end."""
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


def cut_off() -> Refusal:
    """The server has stopped before an answer was done."""
    return Refusal(
        503, "the request was ended before its answer was done: the server is shutting down; "
        "try again later", code="cancelled",
    )  # fmt: skip


def refusal(error: BaseException) -> Refusal:
    """Any exception as an error for a client; the details of an unexpected one stay here."""
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
    name = next((one for one in names[field] if at_path(sent, one) is not None), names[field][0])
    message = refused.message
    if message.startswith(field):
        message = name + message[len(field) :]
    return Refusal(refused.status, message, param=name, code=refused.code, headers=refused.headers)


def at_path(value: Any, path: str, between: str = ".") -> Any:
    """The value at a path through the objects of a JSON value; None: there is none."""
    for name in path.split(between):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def dialect_of(path: str) -> Dialect:
    """The API of a path."""
    for known, dialect in DIALECTS.items():
        if path == known or path.startswith(known + "/"):
            return dialect
    return "openai"


def body_of(refused: Refusal, dialect: Dialect, request_id: str | None = None) -> dict[str, Any]:
    """The body of an error, or of an error event in a stream.

    Args:
        request_id: for Anthropic's clients, which look for it here.
    """
    status = refused.status
    usual = {408: "timeout_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    kind = _TYPES[dialect].get(status, usual)
    if dialect == "anthropic":
        found = {"type": "error", "error": {"type": kind, "message": refused.message}}
        return found if request_id is None else found | {"request_id": request_id}
    if dialect == "plain":
        return {"error": {"code": status, "message": refused.message, "type": kind}}
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


def logged(error: BaseException, scope: Scope, *, text: bool) -> Refusal:
    """As `refusal`; an exception that nobody expected goes into the log: its kind, and where.

    Args:
        text: log its message as well, and that of its causes; they may hold what a user wrote.
    """
    refused = refusal(error)
    if refused.status >= 500 and not isinstance(error, Refusal):
        where = "".join(traceback.format_tb(error.__traceback__))
        kind = f"{where}{type(error).__qualname__} (--log-text shows its message)"
        shown = "".join(traceback.format_exception(error)) if text else kind
        log.error("request %s failed\n%s", scope["dgemma.request_id"], shown)
    return refused


def invalid(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """The first of the faults that pydantic found."""
    first = min(errors, key=lambda e: e["type"] == "missing", default=None)
    if first is None:
        return Refusal(400, "the request is malformed")
    where = _field(first)
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
    if first["type"] == "too_short" and not first["input"]:
        said = f"{where} is empty; give one or more"
        return Refusal(400, said, param=where, code="invalid_value")
    message = str(first["msg"])
    message = message[:1].lower() + message[1:]
    if first["type"].startswith("int_"):  # a number, or one of some words
        words = (e for e in errors if e["type"] == "literal_error" and _field(e) == where)
        message += "".join(f" or {word['ctx']['expected']}" for word in words)
    return Refusal(400, f"{where}: {message}", param=where, code="invalid_value")


def _field(error: Mapping[str, Any]) -> str:
    """The name of the field at fault: `messages[0].content`."""
    parts = [part for part in error["loc"] if isinstance(part, int) or _NAME.fullmatch(part)]
    return re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in parts))


# -- for the OpenAPI document ----------------------------------------------------------------------


class ErrorBody(BaseModel):
    """The error itself."""

    message: str
    type: str


class OpenAIErrorBody(ErrorBody):
    """The error itself."""

    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIErrorBody


class AnthropicError(BaseModel):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: ErrorBody


class PlainErrorBody(ErrorBody):
    """The error itself."""

    code: int


class PlainError(BaseModel):
    """An error in llama.cpp's shape."""

    error: PlainErrorBody


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for `responses=`."""
    return {status: {"model": model, "description": about} for status, about in STATUSES.items()}


ERRORS = errors(OpenAIError)
ANTHROPIC_ERRORS = errors(AnthropicError)
PLAIN_ERRORS = errors(PlainError)
