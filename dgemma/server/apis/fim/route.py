"""POST /v1/fim/completions (Mercury, Mistral) and /infill (llama.cpp): fill in the middle.

Knows both paths and their replies. Knows nothing about how a hole is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.params import SamplingParams
from dgemma.server import sse
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.chat.reply import costs, timings
from dgemma.server.apis.chat.route import count
from dgemma.server.apis.completions.reply import STREAMED, Head, choice, logged, with_errors
from dgemma.server.apis.fim.schema import (
    DEFAULT_TOKENS,
    FimRequest,
    InfillReply,
    InfillRequest,
    indented,
    picked,
    reference,
)
from dgemma.server.pieces import words
from dgemma.server.plans import Infilled, infilled, plan_params
from dgemma.server.reply_schema import ERRORS, PLAIN_ERRORS, TextReply
from dgemma.server.service import Service

router = APIRouter(tags=["infill"])


@router.post("/v1/fim/completions", response_model=TextReply, responses={**ERRORS, **STREAMED})
async def fim(
    http: HTTPRequest, asked: FimRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """What stands between prompt and suffix, in Mercury's form."""
    head = Head(service.look_up(asked.model), "fimcmpl")
    params = plan_params(asked, service, stop=True)
    if params.max_tokens is None and service.facts.canvas > DEFAULT_TOKENS:
        asked = asked.model_copy(update={"max_tokens": DEFAULT_TOKENS})
        params = plan_params(asked, service, stop=True)
    logged(http, service, prompt=asked.prompt, suffix=asked.suffix)
    work = partial(infilled, service, owner, asked.prompt, asked.suffix, params, stop=asked.stop)
    if asked.stream:
        source = with_errors(_fim_chunks(service, head, work), http, service, done=True)
        return sse.EventStreamResponse(source, service.settings.heartbeat_s)
    found = await sse.unless_gone(http, work())
    count(service, [found.end])
    return JSONResponse(head.reply([choice(0, found.text, "stop")]) | costs([found.end]))


async def _fim_chunks(
    service: Service, head: Head, work: Callable[[], Awaitable[Infilled]]
) -> AsyncGenerator[bytes, None]:
    found = await work()
    for word in words(found.text):
        yield sse.event(head.reply([choice(0, word)]))
    count(service, [found.end])
    yield sse.event(head.reply([choice(0, "", "stop")]) | costs([found.end]))


@router.post("/infill", response_model=InfillReply, responses={**PLAIN_ERRORS, **STREAMED})
async def infill(
    http: HTTPRequest, asked: InfillRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """What stands between two texts, in llama.cpp's form."""
    service.look_up(asked.model)
    params = plan_params(asked.drawing(), service, stop=True)
    logged(http, service, prefix=asked.input_prefix, prompt=asked.prompt, suffix=asked.input_suffix)
    if asked.stream:
        source = with_errors(_infill_chunks(service, owner, asked, params), http, service)
        return sse.EventStreamResponse(source, service.settings.heartbeat_s)
    body = await sse.unless_gone(http, _infill_body(service, owner, asked, params))
    return JSONResponse(picked(body, asked.response_fields))


async def _infill_body(
    service: Service, owner: str, asked: InfillRequest, params: SamplingParams
) -> dict[str, Any]:
    """llama.cpp's reply; where nothing was asked for, or the time was not enough, it is empty."""
    head = {"index": 0, "model": service.name, "stop": True, "truncated": False}
    nothing = head | {
        "content": "", "tokens": [], "tokens_predicted": 0, "tokens_evaluated": 0,
        "stop_type": "limit", "stopping_word": "",
    }  # fmt: skip
    if asked.n_predict == 0:
        return nothing
    work = infilled(
        service, owner, asked.input_prefix + asked.prompt, asked.input_suffix, params,
        stop=asked.stop, context=reference(asked.input_extra),
    )  # fmt: skip
    try:
        found = await asyncio.wait_for(work, asked.limit_s)
    except TimeoutError:
        return nothing
    end = found.end
    count(service, [end])
    content = indented(found.text, asked.n_indent)
    spent = end.output.usage
    seconds = end.times.total_s
    written = spent.completion_tokens
    return head | {
        "content": content, "tokens": service.facts.tokenizer.encode(content),
        "tokens_predicted": written, "tokens_evaluated": spent.prompt_tokens,
        "stop_type": "eos" if found.stopped is None else "word",
        "stopping_word": found.stopped or "", "seed": end.output.seed,
        "timings": {
            "prompt_n": spent.prompt_tokens, "predicted_n": written,
            "predicted_ms": 1000 * seconds,
            "predicted_per_second": written / seconds if seconds else 0.0, **timings([end]),
        },
        "diffusion_usage": costs([end])["diffusion_usage"],
    }  # fmt: skip


async def _infill_chunks(
    service: Service, owner: str, asked: InfillRequest, params: SamplingParams
) -> AsyncGenerator[bytes, None]:
    body = await _infill_body(service, owner, asked, params)
    for word in words(body["content"]):
        yield sse.event({"index": 0, "content": word, "stop": False})
    yield sse.event(picked(body | {"content": "", "tokens": []}, asked.response_fields))
