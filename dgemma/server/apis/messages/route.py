"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API.

Knows both paths and the order of things. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.server.apis.messages.reply import InputTokens, MessageEvents, MessageReply
from dgemma.server.apis.messages.schema import (
    Conversation,
    CountRequest,
    MessagesRequest,
    conversation,
)
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ANTHROPIC_ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange, TheService
from dgemma.server.service import Service
from dgemma.types import Request

router = APIRouter(tags=["messages"], route_class=BodyRoute)
PATH = "/v1/messages"


@router.post(PATH, response_model=MessageReply, responses={**ANTHROPIC_ERRORS, **STREAMED})
async def messages(asked: MessagesRequest, exchange: HTTPExchange) -> Response:
    """A conversation answered."""
    found = conversation(asked)
    exchange.begin(asked.model, messages=found.messages)
    events = await exchange.unless_gone(_started(asked, found, exchange))
    return await exchange.send(events, stream=asked.stream, done=False)


@router.post(f"{PATH}/count_tokens", response_model=InputTokens, responses=ANTHROPIC_ERRORS)
async def count_tokens(asked: CountRequest, service: TheService) -> dict[str, int]:
    """The number of tokens in the prompt of a conversation."""
    service.look_up(asked.model)
    found = conversation(asked)
    return {"input_tokens": len(await service.in_thread(_prompt, found, service))}


async def _started(
    asked: MessagesRequest, found: Conversation, exchange: Exchange
) -> MessageEvents:
    service = exchange.service
    request = await service.in_thread(_request, asked, found, exchange)
    one = asked.tool_choice is not None and asked.tool_choice.disable_parallel_tool_use
    [reader] = await exchange.start([request], one_call=bool(one))
    return MessageEvents(exchange, reader, len(request.token_ids))


def _prompt(found: Conversation, service: Service) -> list[int]:
    ids = service.chat_ids(found.messages, found.tools, found.thinking)
    return ids + (service.facts.tokenizer.encode(found.prefill) if found.prefill else [])


def _request(asked: MessagesRequest, found: Conversation, exchange: Exchange) -> Request:
    service = exchange.service
    params = asked.params(service.settings.limits)
    return Request(
        token_ids=tuple(_prompt(found, service)), params=params, chat=True, tool_use=found.calls,
        owner=exchange.owner,
    )  # fmt: skip
