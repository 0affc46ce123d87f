"""POST /v1/completions: plain text gone on with, or filled in before a suffix.

Knows the path and the order of things. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.compose.drafts import best, drafts
from dgemma.errors import InvalidRequest
from dgemma.frontend import TextStream
from dgemma.params import SamplingParams
from dgemma.server import sse
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.chat import reply as chat_reply
from dgemma.server.apis.chat.reply import costs, costs_beside
from dgemma.server.apis.chat.route import count, most_steps
from dgemma.server.apis.completions.reply import (
    STREAMED,
    Head,
    choice,
    end,
    ending,
    logged,
    logprobs,
    with_errors,
)
from dgemma.server.apis.completions.schema import CompletionRequest
from dgemma.server.limits import check_limit, limited
from dgemma.server.pieces import (
    Committed,
    End,
    Folded,
    Frame,
    Piece,
    PieceReader,
    Scores,
    StatusPiece,
    Text,
    Times,
    fold,
    words,
)
from dgemma.server.plans import Infilled, infilled, plan_params, run_plan
from dgemma.server.reply_schema import ERRORS, TextReply
from dgemma.server.service import Service
from dgemma.types import Output, Request, TokenScore

router = APIRouter(tags=["completions"])
PATH = "/v1/completions"


@dataclass(slots=True)
class CompletionCall:
    """One call of the API with all its choices.

    Attributes:
        each: choices of one prompt.
        most_steps: of a canvas.
    """

    asked: CompletionRequest
    service: Service
    owner: str
    head: Head
    each: int
    most_steps: int = 0

    def costs(self, ends: Sequence[End]) -> dict[str, Any]:
        """What the reply tells of its costs; every prompt counts once."""
        found = costs(list(ends))
        prompts = sum(end.output.usage.prompt_tokens for end in ends[:: self.each])
        usage = found["usage"] | {
            "prompt_tokens": prompts,
            "total_tokens": prompts + found["usage"]["completion_tokens"],
        }
        return found | {"usage": usage}

    def logprobs(self, scores: Sequence[TokenScore], first: int = 0) -> dict[str, Any] | None:
        """Of one choice from a token on, where they were asked for."""
        if self.asked.logprobs is None:
            return None
        asked = self.asked.logprob_token_ids or ()
        return logprobs(scores, asked, self.service.facts.tokenizer, first)

    def count(self, ends: Sequence[End]) -> None:
        """Add the answers to the metrics."""
        count(self.service, ends, self.each)

    @property
    def head_of_chunks(self) -> dict[str, Any]:
        """What every chunk but the last holds where that tells the usage."""
        options = self.asked.stream_options
        return {"usage": None} if options and options.include_usage else {}


@router.post(PATH, response_model=TextReply, responses={**ERRORS, **STREAMED})
async def completions(
    http: HTTPRequest, asked: CompletionRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """OpenAI's old API for plain text."""
    job = CompletionCall(asked, service, owner, Head(service.look_up(asked.model)), asked.n or 1)
    _within(asked, service)
    logged(http, service, prompt=asked.prompt, suffix=asked.suffix)
    if asked.suffix is not None:
        params = plan_params(asked, service, stop=True)
        if asked.stream:
            return _events(job, http, _infill_chunks(job, params), ())
        return JSONResponse(await sse.unless_gone(http, _infill_reply(job, params)))
    if asked.best_of is not None:
        return JSONResponse(await sse.unless_gone(http, _best_reply(job)))
    readers, streams = await sse.unless_gone(http, _begun(job))
    if asked.stream:
        return _events(job, http, _chunks(job, readers), streams)
    with ending(streams):
        return JSONResponse(await sse.unless_gone(http, _reply(job, readers)))


async def _begun(job: CompletionCall) -> tuple[list[PieceReader], list[TextStream]]:
    """The requests at work."""
    asked, service = job.asked, job.service
    requests = await service.aside(_requests, asked, service)
    job.most_steps = most_steps(requests[0], service)
    streams = await service.submit(requests, owner=job.owner)
    every = asked.shown.stream_interval
    readers = [
        PieceReader(service.facts, request, stream, chat=False, every=every)
        for request, stream in zip(requests, streams, strict=True)
    ]
    return readers, streams


def _events(
    job: CompletionCall,
    http: HTTPRequest,
    source: AsyncGenerator[bytes, None],
    streams: Sequence[TextStream],
) -> Response:
    source = with_errors(source, http, job.service, done=True)
    return sse.EventStreamResponse(source, job.service.settings.heartbeat_s, partial(end, streams))


def _within(asked: CompletionRequest, service: Service) -> None:
    """
    Raises:
        Refusal, InvalidRequest: more answers than one request may ask for, or no prompt.
    """
    most, prompts = service.settings.limits.n, len(asked.prompts())
    if not prompts:
        raise InvalidRequest("prompt holds no text; give at least one", field="prompt")
    for name in ("n", "best_of"):
        each = getattr(asked, name) or 1
        check_limit(name, each, most)
        if prompts * each > most:
            raise limited(
                "prompt", f"prompt holds {prompts} texts with {name} {each}, {prompts * each} "
                f"answers, more than this server's {most} of one request; send several requests",
            )  # fmt: skip


def _requests(asked: CompletionRequest, service: Service) -> list[Request]:
    """The requests to the model, the choices of one prompt side by side."""
    params = asked.params(service.settings.limits)
    prompts = [service.model.frontend.prompt_ids(prompt) for prompt in asked.prompts()]
    control = asked.canvas(service.facts, params)
    return [
        replace(request, frames=asked.drafts, status=asked.drafts, canvas=control)
        for request in drafts(prompts, params, asked.best_of or asked.n or 1)
    ]


async def _reply(job: CompletionCall, readers: Sequence[PieceReader]) -> dict[str, Any]:
    folded = list(await asyncio.gather(*(fold(reader.pieces()) for reader in readers)))
    ends = [one.ended for one in folded]
    job.count(ends)
    choices = [
        choice(number, one.text, chat_reply.finish_reason(one.ended, 0), job.logprobs(one.scores))
        for number, one in enumerate(folded)
    ]
    return job.head.reply(choices) | job.costs(ends)


async def _best_reply(job: CompletionCall) -> dict[str, Any]:
    began = time.perf_counter()
    service, of = job.service, job.asked.best_of or 1
    requests = await service.aside(_requests, job.asked, service)
    plan = best(service.facts, requests, job.each, of)
    outputs: list[Output]
    outputs, width = await run_plan(service, plan, job.owner)
    times = Times(total_s=time.perf_counter() - began)
    ends = [End(output, times, width, 0) for output in outputs]
    job.count(ends)
    choices = [
        choice(number, end.output.text, chat_reply.finish_reason(end, 0),
               job.logprobs(end.output.scores))
        for number, end in enumerate(ends)
    ]  # fmt: skip
    return job.head.reply(choices) | job.costs(ends)


async def _chunks(
    job: CompletionCall, readers: Sequence[PieceReader]
) -> AsyncGenerator[bytes, None]:
    head, besides = job.head, job.head_of_chunks
    source = sse.merge([reader.pieces() for reader in readers])
    folded = [Folded() for _ in readers]
    try:
        async for number, piece in source:
            so_far = folded[number]
            so_far.add(piece)
            for part, more in _told_of(job, number, piece, so_far):
                yield sse.event(head.reply([part]) | besides | more)
        ends = [one.ended for one in folded]
        job.count(ends)
        if besides:
            yield sse.event(head.reply([]) | job.costs(ends))
    finally:
        await source.aclose()


def _told_of(
    job: CompletionCall, number: int, piece: Piece, so_far: Folded
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The choices that tell one piece, and what stands beside them."""
    if isinstance(piece, Text):
        yield choice(number, piece.text), {}
    elif isinstance(piece, Frame):
        tokens = job.asked.shown.stream == "tokens"
        tokenizer = job.service.facts.tokenizer
        yield choice(number, ""), chat_reply.frame(piece, job.most_steps, tokenizer, tokens=tokens)
    elif isinstance(piece, Scores):
        first = len(so_far.scores) - len(piece.scores)
        yield choice(number, "", None, job.logprobs(so_far.scores, first)), {}
    elif isinstance(piece, (StatusPiece, Committed)):
        yield choice(number, ""), chat_reply.note(piece)
    elif isinstance(piece, End):
        yield choice(number, "", chat_reply.finish_reason(piece, 0)), costs_beside([piece])


async def _infills(job: CompletionCall, params: SamplingParams) -> list[Infilled]:
    """What stands between prompt and suffix, n times, with seeds that count up."""
    asked = job.asked
    assert isinstance(asked.prompt, str) and asked.suffix is not None
    seeds = [
        None if params.seed is None else (params.seed + number) % 2**64
        for number in range(job.each)
    ]
    return list(await asyncio.gather(*(
        infilled(job.service, job.owner, asked.prompt, asked.suffix, replace(params, seed=seed),
                 stop=asked.stop)
        for seed in seeds
    )))  # fmt: skip


async def _infill_reply(job: CompletionCall, params: SamplingParams) -> dict[str, Any]:
    found = await _infills(job, params)
    ends = [one.end for one in found]
    job.count(ends)
    choices = [choice(number, one.text, "stop") for number, one in enumerate(found)]
    return job.head.reply(choices) | job.costs(ends)


async def _infill_chunks(
    job: CompletionCall, params: SamplingParams
) -> AsyncGenerator[bytes, None]:
    head, besides = job.head, job.head_of_chunks
    found = await _infills(job, params)
    for number, one in enumerate(found):
        for word in words(one.text):
            yield sse.event(head.reply([choice(number, word)]) | besides)
        last = head.reply([choice(number, "", "stop")]) | besides
        yield sse.event(last | costs_beside([one.end]))
    ends = [one.end for one in found]
    job.count(ends)
    if besides:
        yield sse.event(head.reply([]) | job.costs(ends))
