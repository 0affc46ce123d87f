"""POST /v1/fim/completions (Mercury, Mistral) and /infill (llama.cpp): fill in the middle.

Knows both paths and llama.cpp's reply. Knows nothing about how a hole is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.params import SamplingParams
from dgemma.server import sse
from dgemma.server.accounting import costs, costs_beside
from dgemma.server.apis.completions.reply import TextChoices
from dgemma.server.apis.completions.schema import TextReply
from dgemma.server.apis.fim.schema import (
    DEFAULT_TOKENS,
    FimRequest,
    InfillReply,
    InfillRequest,
    indented,
    picked,
    reference,
)
from dgemma.server.choices import ChoiceFields
from dgemma.server.errors import ERRORS, PLAIN_ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.pieces import End, words
from dgemma.server.plans import infill_pieces, infilled, plan_params

router = APIRouter(tags=["infill"])


@router.post("/v1/fim/completions", response_model=TextReply, responses={**ERRORS, **STREAMED})
async def fim(asked: FimRequest, exchange: HTTPExchange) -> Response:
    """The text between prompt and suffix, in Mercury's form."""
    exchange.begin(asked.model, prompt=asked.prompt, suffix=asked.suffix)
    params = plan_params(asked, exchange.service, stop=True)
    if params.max_tokens is None and exchange.service.facts.canvas > DEFAULT_TOKENS:
        params = replace(params, max_tokens=DEFAULT_TOKENS)
    fill = partial(infilled, exchange, asked.prompt, asked.suffix, params, stop=asked.stop)
    choices = FimChoices(exchange, [infill_pieces(fill)], ChoiceFields())
    return await exchange.send(choices, stream=asked.stream)


class FimChoices(TextChoices):
    """Mercury's choice, whose last chunk has all costs."""

    PREFIX = "fimcmpl"

    def last(self, end: End) -> dict[str, Any]:
        """See `Choices.last`."""
        return costs([end])


@router.post("/infill", response_model=InfillReply, responses={**PLAIN_ERRORS, **STREAMED})
async def infill(asked: InfillRequest, exchange: HTTPExchange) -> Response:
    """The text between two texts, in llama.cpp's form."""
    exchange.begin(
        asked.model, prefix=asked.input_prefix, prompt=asked.prompt, suffix=asked.input_suffix
    )
    params = plan_params(asked.sampling(), exchange.service, stop=True)
    return await exchange.send(Infill(exchange, asked, params), stream=asked.stream, done=False)


@dataclass(frozen=True, slots=True)
class Infill:
    """llama.cpp's reply; see `dgemma.server.exchange.Reply`."""

    exchange: Exchange
    asked: InfillRequest
    params: SamplingParams

    async def whole(self) -> dict[str, Any]:
        """The plain reply."""
        return picked(await self._body(), self.asked.response_fields)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The same word by word."""
        body = await self._body()
        for word in words(body["content"]):
            yield sse.event({"index": 0, "content": word, "stop": False})
        yield sse.event(picked(body | {"content": "", "tokens": []}, self.asked.response_fields))

    async def _body(self) -> dict[str, Any]:
        """All fields; without a text if none is asked for, or the time is over."""
        asked, exchange = self.asked, self.exchange
        nothing = InfillReply(model=exchange.service.name, stop_type="limit")
        found = nothing.model_dump(exclude_none=True)
        if asked.n_predict == 0:
            return found
        work = infilled(
            exchange, asked.input_prefix + asked.prompt, asked.input_suffix, self.params,
            stop=asked.stop, context=reference(asked.input_extra),
        )  # fmt: skip
        try:
            end = await asyncio.wait_for(work, asked.limit_s)
        except TimeoutError:
            return found
        exchange.count([end])
        output, seconds = end.output, end.times.total_s
        content = indented(output.text, asked.n_indent)
        prompt, written = output.usage.prompt_tokens, output.usage.completion_tokens
        spent = costs_beside([end])
        return found | {
            "content": content, "tokens": exchange.service.facts.tokenizer.encode(content),
            "tokens_predicted": written, "tokens_evaluated": prompt,
            "stop_type": "eos" if output.stopped_by is None else "word",
            "stopping_word": output.stopped_by or "", "seed": output.seed,
            "timings": {
                "prompt_n": prompt, "predicted_n": written, "predicted_ms": 1000 * seconds,
                "predicted_per_second": written / seconds if seconds else 0.0, **spent["timings"],
            },
            "diffusion_usage": spent["diffusion_usage"],
        }  # fmt: skip
