"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API.

Knows both paths and the order of things. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.server.apis.messages.conversation import Conversation, conversation
from dgemma.server.apis.messages.reply import InputTokens, MessageEvents, MessageReply
from dgemma.server.apis.messages.schema import CountRequest, MessagesRequest
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ANTHROPIC_ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.service import Service
from dgemma.types import Request

router = APIRouter(tags=["messages"], route_class=BodyRoute)
PATH = "/v1/messages"


@router.post(PATH, response_model=MessageReply, responses={**ANTHROPIC_ERRORS, **STREAMED})
async def messages(asked: MessagesRequest, exchange: HTTPExchange) -> Response:
    """A conversation answered."""
    found = await exchange.in_thread(conversation, asked)
    exchange.begin(asked.model, messages=found.messages)
    events = await exchange.unless_gone(_started(asked, found, exchange))
    return await exchange.send(events, stream=asked.stream, done=False)


@router.post(f"{PATH}/count_tokens", response_model=InputTokens, responses=ANTHROPIC_ERRORS)
async def count_tokens(asked: CountRequest, exchange: HTTPExchange) -> dict[str, int]:
    """The number of tokens in the prompt of a conversation."""
    exchange.service.look_up(asked.model)
    work = exchange.in_thread(_counted, asked, exchange.service)
    return {"input_tokens": await exchange.unless_gone(work)}


def _counted(asked: CountRequest, service: Service) -> int:
    return len(_prompt(conversation(asked), service))


async def _started(
    asked: MessagesRequest, found: Conversation, exchange: Exchange
) -> MessageEvents:
    request = await exchange.in_thread(_request, asked, found, exchange)
    one = asked.tool_choice is not None and asked.tool_choice.disable_parallel_tool_use
    [reader] = await exchange.start([request], one_call=bool(one))
    return MessageEvents(exchange, reader, reader.prompt_tokens)


def _prompt(found: Conversation, service: Service) -> list[int]:
    facts = service.facts
    facts.tokenizer.check_length((found.prefill,), facts.context, field="messages")
    ids = service.chat_ids(found.messages, found.tools, found.thinking)
    return [*facts.closed(ids), *facts.tokenizer.encode(found.prefill)] if found.prefill else ids


def _request(asked: MessagesRequest, found: Conversation, exchange: Exchange) -> Request:
    service = exchange.service
    params = asked.params(service.settings.limits)
    return Request(
        token_ids=tuple(_prompt(found, service)), params=params, chat=True, tool_use=found.calls,
        mode=asked.mode, owner=exchange.owner,
        edits=asked.diffusion.canvas_edits() if asked.diffusion else (),
    )  # fmt: skip
