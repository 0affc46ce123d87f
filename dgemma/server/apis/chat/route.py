"""POST /v1/chat/completions: a conversation answered.

Knows the order of things: check, start, reply. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.errors import bad_field
from dgemma.server.apis.chat.reply import ChatChoices
from dgemma.server.apis.chat.schema import ChatReply, ChatRequest
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.limits import check_rows
from dgemma.types import Request

router = APIRouter(tags=["chat"], route_class=BodyRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses={**ERRORS, **STREAMED},
    summary="Answer a conversation",
)
async def chat_completions(asked: ChatRequest, exchange: HTTPExchange) -> Response:
    """OpenAI's chat API, with drafts of the canvas on request."""
    exchange.begin(asked.model, messages=asked.messages)
    choices = await exchange.unless_gone(_started(asked, exchange))
    return await exchange.send(choices, stream=asked.stream)


async def _started(asked: ChatRequest, exchange: Exchange) -> ChatChoices:
    requests = await exchange.in_thread(_requests, asked, exchange)
    readers = await exchange.start(
        requests, every=asked.denoising.stream_interval,
        one_call=asked.parallel_tool_calls is False,
    )  # fmt: skip
    return ChatChoices(exchange, [reader.pieces() for reader in readers], asked)


def _requests(asked: ChatRequest, exchange: Exchange) -> list[Request]:
    """The requests to the model.

    Raises:
        DGemmaError, Refusal: a field that cannot be honoured.
    """
    service = exchange.service
    limits = service.settings.limits
    count = asked.n or 1
    params = asked.params(limits)
    race = service.race(params.race) if asked.mode == "diffusion" else 1
    check_rows("n", count, race, limits.n)
    tools, calls = asked.called()
    if calls is not None and calls.required and params.constraint_field is not None:
        why = "cannot be combined with a required tool call; drop one of them"
        raise bad_field("response_format", why)
    options = asked.chat_template_kwargs
    more = None if options is None else options.others
    prompt = service.chat_ids(asked.messages, tools, asked.thinking[0], more)
    return asked.requests(
        service.facts, [prompt], params, count, chat=True, tool_use=calls, owner=exchange.owner
    )
