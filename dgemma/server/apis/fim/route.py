"""POST /v1/fim/completions (Mercury, Mistral) and /infill (llama.cpp): fill in the middle.

Knows both paths and llama.cpp's reply. Knows nothing about how a hole is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.compose.fill import Filled
from dgemma.compose.fill import infill as fill_in
from dgemma.server import sse
from dgemma.server.accounting import costs, costs_beside
from dgemma.server.apis.completions.reply import TextChoices
from dgemma.server.apis.completions.schema import TextReply
from dgemma.server.apis.fim.schema import (
    DEFAULT_TOKENS,
    FimRequest,
    InfillReply,
    InfillRequest,
    picked,
    reference,
)
from dgemma.server.body_route import BodyRoute
from dgemma.server.choices import ChoiceFields
from dgemma.server.errors import ERRORS, PLAIN_ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.frames import FrameWriter, progress
from dgemma.server.pieces import End, Folded, Frame, Piece, Progress, fold
from dgemma.server.plans import PlanRun, infill_pieces, plan_params
from dgemma.server.sampling_fields import Diffusion
from dgemma.types import TextDelta

router = APIRouter(tags=["infill"], route_class=BodyRoute)


@router.post("/v1/fim/completions", response_model=TextReply, responses={**ERRORS, **STREAMED})
async def fim(asked: FimRequest, exchange: HTTPExchange) -> Response:
    """The text between prompt and suffix, in Mercury's form."""
    exchange.begin(asked.model, prompt=asked.prompt, suffix=asked.suffix)
    params = plan_params(asked, exchange.service, stop=True)
    if params.max_tokens is None and exchange.service.facts.canvas > DEFAULT_TOKENS:
        params = replace(params, max_tokens=DEFAULT_TOKENS)
    plan = fill_in(exchange.service.facts, asked.prompt, asked.suffix, params)
    run = PlanRun(exchange, plan, asked.denoising)
    await run.begin()
    fields = ChoiceFields(stream=asked.stream, diffusion=asked.diffusion)
    choices = FimChoices(exchange, [infill_pieces(run, stop=asked.stop)], fields)
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
    service = exchange.service
    params = plan_params(asked.sampling(), service, stop=True)
    plan = fill_in(
        service.facts, asked.input_prefix + asked.prompt, asked.input_suffix, params,
        context=reference(asked.input_extra),
    )  # fmt: skip
    run = PlanRun(exchange, plan, asked.diffusion)
    if asked.n_predict != 0:
        await run.begin()
    return await exchange.send(Infill(exchange, asked, run), stream=asked.stream, done=False)


@dataclass(frozen=True, slots=True)
class Infill:
    """llama.cpp's reply; see `dgemma.server.exchange.Reply`."""

    exchange: Exchange
    asked: InfillRequest
    run: PlanRun[Filled]

    async def whole(self) -> dict[str, Any]:
        """The plain reply."""
        folded = await fold(self._pieces())
        return picked(self._body(folded), self.asked.response_fields)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The same, as soon as it can no longer change, with drafts if they are asked for."""
        shown, folded = self.asked.diffusion, Folded()
        part = {"index": 0, "content": "", "stop": False}
        frames = FrameWriter(shown or Diffusion(), self.exchange.service.facts.tokenizer)
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                folded.add(piece)
                if isinstance(piece, TextDelta):
                    yield sse.event(part | {"content": piece.text})
                elif isinstance(piece, Frame):
                    yield sse.event(part | frames.draft(piece))
                elif isinstance(piece, Progress):
                    yield sse.event(part | {"diffusion": progress(piece)})
        rest = self._body(folded) | {"content": "", "tokens": []}
        yield sse.event(picked(rest, self.asked.response_fields))

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """Those that come before the time is over; none if no text is asked for."""
        asked = self.asked
        if asked.n_predict == 0:
            return
        until = None if asked.limit_s is None else time.monotonic() + asked.limit_s
        source = infill_pieces(self.run, stop=asked.stop, indent=asked.n_indent)
        async with aclosing(source):
            while True:
                left = None if until is None else until - time.monotonic()
                try:
                    piece = await asyncio.wait_for(anext(source), left)
                except (StopAsyncIteration, TimeoutError):
                    return
                yield piece

    def _body(self, folded: Folded) -> dict[str, Any]:
        """All fields; without costs if no text is asked for, or the time is over."""
        exchange = self.exchange
        text = InfillReply(
            model=exchange.service.name, stop_type="limit", content=folded.text,
            tokens=exchange.service.facts.tokenizer.encode(folded.text),
        )  # fmt: skip
        found = text.model_dump(exclude_none=True)
        end = folded.end
        if end is None:
            return found
        exchange.count([end])
        output, seconds = end.output, end.times.total_s
        prompt, written = output.usage.prompt_tokens, output.usage.completion_tokens
        spent = costs_beside([end])
        return found | {
            "tokens_predicted": written, "tokens_evaluated": prompt,
            "stop_type": "eos" if output.stopped_by is None else "word",
            "stopping_word": output.stopped_by or "", "seed": output.seed,
            "timings": {
                "prompt_n": prompt, "predicted_n": written, "predicted_ms": 1000 * seconds,
                "predicted_per_second": written / seconds if seconds else 0.0, **spent["timings"],
            },
            "diffusion_usage": spent["diffusion_usage"],
        }  # fmt: skip
