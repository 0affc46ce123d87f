"""What went wrong, as a status and a body in the shape of the API spoken.

The only place that knows HTTP's codes. Knows nothing about routes beyond which API a path speaks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from starlette.responses import JSONResponse

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
from dgemma.params import SamplingParams

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

_TYPES: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}
"""Status -> the error's type in OpenAI's words, and in Anthropic's."""

_NAME = re.compile(r"(?!(?:body|str|int|float|bool)$)[A-Za-z_]\w*")
"""A field in pydantic's path to a fault, which also names the branches of unions."""

_FIELDS = frozenset({f.name for f in fields(SamplingParams)}) | {
    "messages", "tools", "tool_choice", "prompt", "suffix", "strength", "canvas", "n", "bias",
    "masks", "diffusion_seed_canvas", "diffusion_pinned", "pinned", "questions", "model", "ids",
}  # fmt: skip


class Refusal(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: HTTP's.
        message: for people; names the field and the remedy.
        param: the field, as a path with dots.
        code: for programs.
        headers: to be sent along.
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
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def busy(message: str) -> Refusal:
    """No room now; the same request may succeed later."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return Refusal(429, message, code="rate_limit_exceeded", headers=headers)


def closing() -> Refusal:
    """The server is about to stop."""
    return Refusal(
        503, "the server is shutting down; try again later", code="shutting_down",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )  # fmt: skip


def refusal(error: BaseException) -> Refusal:
    """Any exception as what a client is told; the insides of an unexpected one stay here."""
    if isinstance(error, Refusal):
        return error
    text = str(error)
    if isinstance(error, ContextOverflow):
        return Refusal(400, text, code="context_length_exceeded")
    if isinstance(error, InvalidRequest):
        return Refusal(400, text, param=field_of(text))
    if isinstance(error, Overloaded):
        return busy(text)
    if isinstance(error, (TemplateError, TokenizerError, MissingExtra)):
        return Refusal(400, text, code="not_available")
    if isinstance(error, EngineError):
        return Refusal(500, text, code="engine_error")
    if isinstance(error, DGemmaError):
        return Refusal(500, "the model cannot be used; see the server's log")
    return Refusal(500, "something went wrong inside the server; see its log")


def field_of(message: str) -> str | None:
    """The field that a message of ours begins with, if it does."""
    found = re.match(r"([a-z_]+)((?:\[\d+\]|\.[a-z_]+)*)", message)
    return found.group(0) if found and found.group(1) in _FIELDS else None


def dialect_of(path: str) -> Dialect:
    """Which API a path speaks."""
    for known, dialect in DIALECTS.items():
        if path == known or path.startswith(known + "/"):
            return dialect
    return "openai"


def body_of(refused: Refusal, dialect: Dialect) -> dict[str, Any]:
    """The body of an error, or what an error event of a stream holds."""
    known = refused.status if refused.status in _TYPES else 400 if refused.status < 500 else 500
    openai, anthropic = _TYPES[known]
    if dialect == "anthropic":
        return {"type": "error", "error": {"type": anthropic, "message": refused.message}}
    if dialect == "plain":
        return {"error": {"code": refused.status, "message": refused.message, "type": openai}}
    return {
        "error": {
            "message": refused.message, "type": openai, "param": refused.param,
            "code": refused.code,
        }
    }  # fmt: skip


def respond(error: BaseException, path: str) -> JSONResponse:
    """The response to a request that failed."""
    refused = refusal(error)
    return JSONResponse(
        body_of(refused, dialect_of(path)), status_code=refused.status, headers=refused.headers
    )


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
