"""The small routes: models, health, metrics, and the tokenizer over HTTP.

Knows the service and its tokenizer. Knows nothing about answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from dgemma.errors import InvalidRequest, bad_field
from dgemma.server.apis.meta.schema import (
    Content,
    DetokenizeRequest,
    Health,
    ModelCard,
    ModelList,
    Prompt,
    TemplateRequest,
    TokenizeRequest,
    Tokens,
)
from dgemma.server.auth import key_of
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ERRORS, PLAIN_ERRORS, PlainError, Refusal, closing
from dgemma.server.exchange import HTTPExchange, TheService
from dgemma.server.json_reply import json_reply
from dgemma.server.metrics import CONTENT_TYPE
from dgemma.server.service import Service
from dgemma.server.settings import Settings
from dgemma.server.threads import stop_if_left

router = APIRouter(tags=["service"], route_class=BodyRoute)
STARTED = int(time.time())

MOST_PIECES = 65_536
"""Tokens that a reply shows with their texts."""
PIECE = 10_000
"""Ids that are read at a time; between them other threads run."""


def card(service: Service, name: str) -> dict[str, Any]:
    """A model."""
    return {
        "id": name, "object": "model", "created": STARTED, "owned_by": "dgemma",
        "max_model_len": service.facts.context, "canvas_length": service.facts.canvas,
    }  # fmt: skip


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def models(service: TheService) -> dict[str, Any]:
    """The names that the model answers to."""
    data = [card(service, name) for name in service.settings.names]
    return {"object": "list", "data": data}


@router.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERRORS)
async def model(name: str, service: TheService) -> dict[str, Any]:
    """One of them."""
    service.look_up(name)
    return card(service, name)


@router.get("/health", response_model=Health, responses=PLAIN_ERRORS)
async def health(exchange: HTTPExchange) -> dict[str, str]:
    """200 while requests are taken, 503 when the server is about to stop or has no thread free."""
    if exchange.service.closing:
        raise closing()
    await exchange.service.check_threads(exchange.owner)
    return {"status": "ok"}


@router.get(
    "/metrics",
    responses={
        **PLAIN_ERRORS,
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        403: {"model": PlainError, "description": "the key is no admin key"},
    },
    response_class=Response,
)
async def metrics(http: HTTPRequest, service: TheService) -> Response:
    """Numbers for Prometheus. If the server has keys, they are for its admin keys alone."""
    _check_admin(service.settings, key_of(http.headers))
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _check_admin(settings: Settings, key: str | None) -> None:
    """Refuse a key that may not see the counters of all keys.

    Raises:
        Refusal: 401, no key, or a wrong one; 403, an API key.
    """
    keys, admins = settings.keys, settings.admin_keys
    if not (keys or admins) or (admins and admins.owner(key) is not None):
        return
    if keys and keys.owner(key) is not None:
        raise Refusal(
            403, "/metrics counts the requests of all keys and takes an admin key; start the "
            "server with --admin-key-file", code="admin_key_needed",
        )  # fmt: skip
    raise Refusal(
        401, "a valid admin key is needed; send Authorization: Bearer KEY, or x-api-key: KEY",
        code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


@router.post("/tokenize", response_model=Tokens, responses=PLAIN_ERRORS)
async def tokenize(asked: TokenizeRequest, exchange: HTTPExchange) -> Response:
    """The ids of a text. A text never becomes a control token."""
    exchange.service.look_up(asked.model)
    work = exchange.in_thread(_tokens, asked, exchange.service)
    tokens = await exchange.unless_gone(work)
    most = exchange.service.facts.context
    found = {"tokens": tokens, "count": len(tokens), "max_model_len": most}
    # Written as it is: a framework that checks a million ids once more takes long.
    return await json_reply(exchange.aside, exchange.owner, found)


def _tokens(asked: TokenizeRequest, service: Service) -> Sequence[Any]:
    ids = _ids(asked, service)
    stop_if_left()
    if not asked.with_pieces:
        return ids
    if len(ids) > MOST_PIECES:
        why = f"can show {MOST_PIECES} tokens, and this text has {len(ids)}; send less of it"
        raise bad_field("with_pieces", why)
    text = service.facts.tokenizer.token_text
    return [{"id": token_id, "piece": text(token_id)} for token_id in ids]


def _ids(asked: TokenizeRequest, service: Service) -> list[int]:
    given = [text for text in (asked.content, asked.prompt) if text is not None]
    if len(given) + (asked.messages is not None) != 1:
        raise InvalidRequest("give one of content, prompt and messages")
    if asked.messages is not None:
        if asked.add_special is not None:
            raise bad_field("add_special", "has no meaning for messages; leave it out")
        return _chat_ids(asked, service)
    for name in ("tools", "chat_template_kwargs"):
        if getattr(asked, name) is not None:
            raise bad_field(name, "needs messages")
    tokenizer = service.facts.tokenizer
    tokenizer.check_length(given, service.facts.context)
    return tokenizer.encode(given[0], bos=bool(asked.add_special))


def _chat_ids(asked: TokenizeRequest | TemplateRequest, service: Service) -> list[int]:
    options = asked.chat_template_kwargs
    thinking = bool(options and options.enable_thinking)
    more = None if options is None else options.others
    return service.chat_ids(asked.messages or [], asked.tools, thinking, more)


@router.post("/detokenize", response_model=Content, responses=PLAIN_ERRORS)
async def detokenize(asked: DetokenizeRequest, exchange: HTTPExchange) -> dict[str, str]:
    """The text of ids; control tokens by their names."""
    exchange.service.look_up(asked.model)
    work = exchange.in_thread(_text, asked.tokens, exchange.service)
    return {"content": await exchange.unless_gone(work)}


def _text(ids: Sequence[int], service: Service) -> str:
    return service.facts.tokenizer.decode(ids, control=True)


@router.post("/apply-template", response_model=Prompt, responses=PLAIN_ERRORS)
async def apply_template(asked: TemplateRequest, exchange: HTTPExchange) -> dict[str, str]:
    """A conversation as text, to be read: sent back as text, it is another prompt."""
    exchange.service.look_up(asked.model)
    work = exchange.in_thread(_rendered, asked, exchange.service)
    return {"prompt": await exchange.unless_gone(work)}


def _rendered(asked: TemplateRequest, service: Service) -> str:
    return _text(_chat_ids(asked, service), service)
