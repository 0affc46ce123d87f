"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API.

Knows both paths and the order of things. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.frontend import TextStream
from dgemma.server import sse
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.chat import reply as chat_reply
from dgemma.server.apis.chat.route import count
from dgemma.server.apis.completions.reply import STREAMED, ending, logged, with_errors
from dgemma.server.apis.messages.reply import (
    PING,
    ContentBlocks,
    Event,
    InputTokens,
    MessageReply,
    begin,
    end,
    folded,
)
from dgemma.server.apis.messages.schema import (
    Conversation,
    CountRequest,
    MessagesRequest,
    conversation,
)
from dgemma.server.limits import check_schema
from dgemma.server.pieces import Call, End, PieceReader, Text, Thought
from dgemma.server.reply_schema import ANTHROPIC_ERRORS
from dgemma.server.service import Service
from dgemma.text.parse import Delta
from dgemma.types import Request

router = APIRouter(tags=["messages"])
PATH = "/v1/messages"


@router.post(PATH, response_model=MessageReply, responses={**ANTHROPIC_ERRORS, **STREAMED})
async def messages(
    http: HTTPRequest, asked: MessagesRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """A conversation answered."""
    service.look_up(asked.model)
    found = conversation(asked)
    logged(http, service, messages=found.messages)

    async def begun() -> tuple[Request, TextStream]:
        request = await service.aside(_request, asked, found, service)
        [stream] = await service.submit([request], owner=owner, chat=True, calls=found.calls)
        return request, stream

    request, stream = await sse.unless_gone(http, begun())
    must = found.calls is not None and found.calls.must
    reader = PieceReader(service.facts, request, stream, chat=True, must_call=must)
    events = _events(service, asked, request, reader)
    if asked.stream:
        source = with_errors(_bytes(events), http, service)
        return sse.EventStreamResponse(source, service.settings.heartbeat_s, stream.close)
    with ending([stream]):
        return JSONResponse(await sse.unless_gone(http, _folded(events)))


@router.post(f"{PATH}/count_tokens", response_model=InputTokens, responses=ANTHROPIC_ERRORS)
async def count_tokens(asked: CountRequest, service: TheService) -> dict[str, int]:
    """How many tokens the prompt of a conversation has."""
    service.look_up(asked.model)
    found = conversation(asked)
    return {"input_tokens": len(await service.aside(_prompt, found, service))}


def _prompt(found: Conversation, service: Service) -> list[int]:
    if found.tools:
        check_schema(found.tools, "tools", service.settings.limits)
    ids = service.model.frontend.chat_ids(found.messages, found.tools, found.thinking)
    return ids + (service.facts.tokenizer.encode(found.begun) if found.begun else [])


def _request(asked: MessagesRequest, found: Conversation, service: Service) -> Request:
    params = asked.drawing().params(service.settings.limits)
    return Request(token_ids=tuple(_prompt(found, service)), params=params)


async def _events(
    service: Service, asked: MessagesRequest, request: Request, reader: PieceReader
) -> AsyncGenerator[Event, None]:
    """The stream's events; the plain reply is their fold."""
    answer_id = secrets.token_hex(12)
    blocks = ContentBlocks(answer_id)
    one = asked.tool_choice is not None and asked.tool_choice.disable_parallel_tool_use
    source = reader.pieces()
    try:
        yield begin(answer_id, service.name, len(request.token_ids))
        yield PING
        async for piece in source:
            if one and isinstance(piece, Call) and piece.index > 0:
                continue
            delta = _delta(piece)
            if delta is not None:
                for event in blocks.add(delta):
                    yield event
            elif isinstance(piece, End):
                count(service, [piece])
                for event in (*blocks.close(), *_last(piece)):
                    yield event
    finally:
        await source.aclose()


def _delta(piece: Any) -> Delta | None:
    if isinstance(piece, Text):
        return ("text", piece.text)
    if isinstance(piece, Thought):
        return ("thinking", piece.text)
    return ("tool_call", piece.call) if isinstance(piece, Call) else None


def _last(piece: End) -> list[Event]:
    spent = piece.output.usage
    usage = {"input_tokens": spent.prompt_tokens, "output_tokens": spent.completion_tokens}
    extra = {
        "diffusion_usage": chat_reply.diffusion_usage([piece]),
        "timings": chat_reply.timings([piece]), "seed": piece.output.seed,
    }  # fmt: skip
    return end(piece.output, usage, extra)


async def _bytes(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in events:
            yield sse.event(event, event["type"])
    finally:
        await events.aclose()


async def _folded(events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    try:
        return folded([event async for event in events])
    finally:
        await events.aclose()
