"""The small routes: models, health, metrics, and the tokenizer over HTTP.

Knows the service and its tokenizer. Knows nothing about answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
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
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ERRORS, PLAIN_ERRORS, closing
from dgemma.server.exchange import HTTPExchange, TheService
from dgemma.server.json_reply import json_reply
from dgemma.server.metrics import CONTENT_TYPE
from dgemma.server.service import Service

router = APIRouter(tags=["service"], route_class=BodyRoute)
STARTED = int(time.time())

MOST_PIECES = 65_536
"""Tokens that a reply shows with their texts."""


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
async def health(service: TheService) -> dict[str, str]:
    """200 while requests are taken, 503 when the server is about to stop."""
    if service.closing:
        raise closing()
    return {"status": "ok"}


@router.get(
    "/metrics",
    responses={**PLAIN_ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(service: TheService) -> Response:
    """Numbers for Prometheus."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


@router.post("/tokenize", response_model=Tokens, responses=PLAIN_ERRORS)
async def tokenize(asked: TokenizeRequest, exchange: HTTPExchange) -> Response:
    """The ids of a text. A text never becomes a control token."""
    service = exchange.service
    service.look_up(asked.model)
    tokens = await service.in_thread(_tokens, asked, service)
    found = {"tokens": tokens, "count": len(tokens), "max_model_len": service.facts.context}
    return await json_reply(
        exchange.aside, exchange.owner, found
    )  # to check a million ids once more would take long


def _tokens(asked: TokenizeRequest, service: Service) -> Sequence[Any]:
    ids = _ids(asked, service)
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
    return service.facts.tokenizer.encode(given[0], bos=bool(asked.add_special))


def _chat_ids(asked: TokenizeRequest | TemplateRequest, service: Service) -> list[int]:
    options = asked.chat_template_kwargs
    thinking = bool(options and options.enable_thinking)
    return service.chat_ids(asked.messages or [], asked.tools, thinking)


@router.post("/detokenize", response_model=Content, responses=PLAIN_ERRORS)
async def detokenize(asked: DetokenizeRequest, service: TheService) -> dict[str, str]:
    """The text of ids; control tokens by their names."""
    service.look_up(asked.model)
    tokenizer = service.facts.tokenizer
    text = await service.in_thread(lambda: tokenizer.decode(asked.tokens, control=True))
    return {"content": text}


@router.post("/apply-template", response_model=Prompt, responses=PLAIN_ERRORS)
async def apply_template(asked: TemplateRequest, service: TheService) -> dict[str, str]:
    """A conversation as text, to be read: sent back as text, it is another prompt."""
    service.look_up(asked.model)
    return {"prompt": await service.in_thread(_template, asked, service)}


def _template(asked: TemplateRequest, service: Service) -> str:
    return service.facts.tokenizer.decode(_chat_ids(asked, service), control=True)
