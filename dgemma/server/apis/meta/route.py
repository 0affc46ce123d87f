"""What is served and how it fares: models, health, metrics; and the tokenizer over HTTP.

Knows the service and its tokenizer. Knows nothing about answers.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from dgemma.errors import InvalidRequest
from dgemma.server.access import service_of
from dgemma.server.apis.chat.schema import Messages, TemplateOptions, Tools
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
from dgemma.server.errors import Refusal, closing
from dgemma.server.limits import check_schema
from dgemma.server.metrics import CONTENT_TYPE
from dgemma.server.reply_schema import ERRORS, PLAIN_ERRORS
from dgemma.server.service import Service

router = APIRouter(tags=["service"])
Served = Annotated[Service, Depends(service_of)]
STARTED = int(time.time())


def card(service: Service, name: str) -> dict[str, Any]:
    """What a client may know of a model."""
    return {
        "id": name, "object": "model", "created": STARTED, "owned_by": "dgemma",
        "max_model_len": service.facts.context, "canvas_length": service.facts.canvas,
    }  # fmt: skip


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def models(service: Served) -> Response:
    """The names that the model answers to."""
    data = [card(service, name) for name in service.settings.names]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERRORS)
async def model(name: str, service: Served) -> Response:
    """One of them."""
    service.look_up(name)
    return JSONResponse(card(service, name))


@router.get("/health", response_model=Health, responses=PLAIN_ERRORS)
async def health(service: Served) -> Response:
    """200 while requests are taken, 503 when the server is about to stop."""
    if service.closing:
        raise closing()
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    responses={**PLAIN_ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(service: Served) -> Response:
    """Numbers for Prometheus."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


@router.post("/tokenize", response_model=Tokens, responses=PLAIN_ERRORS)
async def tokenize(asked: TokenizeRequest, service: Served) -> Response:
    """The ids of a text. A text never becomes a control token."""
    service.look_up(asked.model)
    ids = await service.aside(_ids, asked, service)
    tokens: list[Any] = ids
    if asked.with_pieces:
        text = service.facts.tokenizer.token_text
        tokens = [{"id": token_id, "piece": text(token_id)} for token_id in ids]
    length = service.facts.context
    return JSONResponse({"tokens": tokens, "count": len(ids), "max_model_len": length})


def _ids(asked: TokenizeRequest, service: Service) -> list[int]:
    given = [text for text in (asked.content, asked.prompt) if text is not None]
    if len(given) + (asked.messages is not None) != 1:
        raise InvalidRequest("give one of content, prompt and messages")
    if asked.messages is not None:
        if asked.add_special is not None:
            raise Refusal(400, "add_special: the chat template says what stands in front",
                          param="add_special")  # fmt: skip
        return _chat_ids(asked.messages, asked.tools, asked.chat_template_kwargs, service)
    for name in ("tools", "chat_template_kwargs"):
        if getattr(asked, name) is not None:
            raise Refusal(400, f"{name} needs messages", param=name)
    return service.facts.tokenizer.encode(given[0], bos=bool(asked.add_special))


def _chat_ids(
    messages: Messages, tools: Tools | None, options: TemplateOptions | None, service: Service
) -> list[int]:
    if tools:
        check_schema(tools, "tools", service.settings.limits)
    thinking = bool(options and options.enable_thinking)
    return service.model.frontend.chat_ids(messages, tools, thinking)


@router.post("/detokenize", response_model=Content, responses=PLAIN_ERRORS)
async def detokenize(asked: DetokenizeRequest, service: Served) -> Response:
    """The text of ids; control tokens by their names."""
    service.look_up(asked.model)
    tokenizer = service.facts.tokenizer
    text = await service.aside(lambda: tokenizer.decode(asked.tokens, control=True))
    return JSONResponse({"content": text})


@router.post("/apply-template", response_model=Prompt, responses=PLAIN_ERRORS)
async def apply_template(asked: TemplateRequest, service: Served) -> Response:
    """A conversation as text. To be read; sent back as text it is no longer the same."""
    service.look_up(asked.model)
    ids = await service.aside(
        _chat_ids, asked.messages, asked.tools, asked.chat_template_kwargs, service
    )
    tokenizer = service.facts.tokenizer
    return JSONResponse({"prompt": tokenizer.decode(ids, control=True)})
