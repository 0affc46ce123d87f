"""POST /v1/completions: plain text gone on with, or filled in before a suffix.

Knows the path and the order of things. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.compose.drafts import best, drafts
from dgemma.errors import InvalidRequest
from dgemma.params import RELEASED, SamplingParams, canvas_width
from dgemma.server import sse
from dgemma.server.access import Owner, TheService
from dgemma.server.errors import Refusal
from dgemma.server.plans import Infilled, follow, infilled, steady
from dgemma.server.replies import (
    Canvas,
    End,
    Frame,
    Piece,
    Reading,
    Status,
    Text,
    Times,
    fold,
    words,
)
from dgemma.server.routes import chat_shapes
from dgemma.server.routes.chat import costs, count
from dgemma.server.routes.text_shapes import STREAMED, Events, Head, choice, ending, logprobs, told
from dgemma.server.schema.completions import MOST_PROMPTS, CompletionRequest
from dgemma.server.schema.replies import ERRORS, TextReply
from dgemma.server.service import Service
from dgemma.text.stream import Stream
from dgemma.types import Output, Request

router = APIRouter(tags=["completions"])
PATH = "/v1/completions"


@dataclass(slots=True)
class Job:
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

    def logprobs(self, output: Output, reading: Reading | None = None) -> dict[str, Any] | None:
        """Of one choice, where they were asked for."""
        if self.asked.logprobs is None:
            return None
        scores = output.scores if reading is None else reading.scores(output)
        asked = self.asked.logprob_token_ids or ()
        return logprobs(scores, asked, self.service.facts.tokenizer)


@router.post(PATH, response_model=TextReply, responses={**ERRORS, **STREAMED})
async def completions(
    http: HTTPRequest, asked: CompletionRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """OpenAI's old API for plain text."""
    job = Job(asked, service, owner, Head(service.look_up(asked.model)), asked.n or 1)
    _within(asked, service)
    if service.settings.log_text:
        http.scope["dgemma.log"] = {"prompt": asked.prompt}
    if asked.suffix is not None:
        params = steady(asked, service, stop=True)
        if asked.stream:
            return _events(job, _infill_chunks(job, params), ())
        return JSONResponse(await sse.unless_gone(http, _infill_reply(job, params)))
    requests = await service.aside(_requests, asked, service)
    full = service.model.defaults.merged(RELEASED)
    job.most_steps = requests[0].params.merged(full).max_steps or 0
    if asked.best_of is not None:
        return JSONResponse(await sse.unless_gone(http, _best_reply(job, requests)))
    streams = await service.submit(requests, owner=owner)
    readings = [
        Reading(service.facts, request, stream, chat=False)
        for request, stream in zip(requests, streams, strict=True)
    ]
    if asked.stream:
        return _events(job, _chunks(job, readings), streams)
    with ending(streams):
        return JSONResponse(await sse.unless_gone(http, _reply(job, readings)))


def _events(job: Job, source: AsyncGenerator[bytes, None], streams: Sequence[Stream]) -> Response:
    source = told(source, PATH, done=True)
    return Events(source, job.service.settings.heartbeat_s, streams)


def _within(asked: CompletionRequest, service: Service) -> None:
    """
    Raises:
        Refusal, InvalidRequest: more choices, or prompts, than one request may ask for.
    """
    most = service.settings.limits.n
    for name in ("n", "best_of"):
        if (getattr(asked, name) or 1) > most:
            raise Refusal(
                400, f"{name} {getattr(asked, name)} is above this server's {most}; ask for fewer",
                param=name, code="limit",
            )  # fmt: skip
    if not 1 <= len(asked.prompts()) <= MOST_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(asked.prompts())} texts; give 1 to {MOST_PROMPTS}")


def _requests(asked: CompletionRequest, service: Service) -> list[Request]:
    """The requests to the model, the choices of one prompt side by side."""
    params = asked.params(service.settings.limits)
    prompts = [service.model.prompter.plain(prompt) for prompt in asked.prompts()]
    control = asked.canvas(service.facts, params)
    return [
        replace(request, frames=asked.drafts, status=asked.drafts, canvas=control)
        for request in drafts(prompts, params, asked.best_of or asked.n or 1)
    ]


async def _reply(job: Job, readings: Sequence[Reading]) -> dict[str, Any]:
    folded = list(await asyncio.gather(*(fold(reading.pieces()) for reading in readings)))
    ends = [one.ended for one in folded]
    count(job.service, ends)
    choices = [
        choice(number, one.text, chat_shapes.finish_reason(one.ended, 0),
               job.logprobs(one.ended.output, reading))
        for number, (one, reading) in enumerate(zip(folded, readings, strict=True))
    ]  # fmt: skip
    return job.head.reply(choices) | job.costs(ends)


async def _best_reply(job: Job, requests: Sequence[Request]) -> dict[str, Any]:
    began = time.perf_counter()
    service, of = job.service, job.asked.best_of or 1
    plan = best(service.facts, requests, job.each, of)
    outputs: list[Output] = await follow(service, plan, job.owner)
    times = Times(total_s=time.perf_counter() - began)
    width = canvas_width(requests[0].params, service.facts.canvas)
    ends = [End(output, times, width, 0) for output in outputs]
    count(service, ends)
    choices = [
        choice(number, end.output.text, chat_shapes.finish_reason(end, 0),
               job.logprobs(end.output))
        for number, end in enumerate(ends)
    ]  # fmt: skip
    return job.head.reply(choices) | job.costs(ends)


async def _chunks(job: Job, readings: Sequence[Reading]) -> AsyncGenerator[bytes, None]:
    asked, head = job.asked, job.head
    source = sse.merge([reading.pieces() for reading in readings])
    ends: dict[int, End] = {}
    try:
        async for number, piece in source:
            if isinstance(piece, End):
                ends[number] = piece
            for part, more in _told_of(job, number, piece, readings[number]):
                yield sse.event(head.reply([part]) | more)
        count(job.service, [ends[number] for number in sorted(ends)])
        if asked.stream_options and asked.stream_options.include_usage:
            ordered = [ends[number] for number in sorted(ends)]
            yield sse.event(head.reply([]) | job.costs(ordered))
    finally:
        await source.aclose()


def _told_of(
    job: Job, number: int, piece: Piece, reading: Reading
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The choices that tell one piece, and what stands beside them."""
    shown = job.asked.shown
    if isinstance(piece, Text):
        yield choice(number, piece.text), {}
    elif isinstance(piece, Frame):
        if piece.event.step % shown.stream_interval == 0:
            tokens = shown.stream == "tokens"
            tokenizer = job.service.facts.tokenizer
            side = chat_shapes.frame(piece, job.most_steps, tokenizer, tokens=tokens)
            yield choice(number, ""), side
    elif isinstance(piece, (Status, Canvas)):
        yield choice(number, ""), chat_shapes.note(piece)
    elif isinstance(piece, End):
        reason = chat_shapes.finish_reason(piece, 0)
        told_costs = {k: v for k, v in costs([piece]).items() if k != "usage"}
        yield choice(number, "", reason, job.logprobs(piece.output, reading)), told_costs


async def _infills(job: Job, params: SamplingParams) -> list[Infilled]:
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


async def _infill_reply(job: Job, params: SamplingParams) -> dict[str, Any]:
    found = await _infills(job, params)
    ends = [one.end for one in found]
    count(job.service, ends)
    choices = [choice(number, one.text, "stop") for number, one in enumerate(found)]
    return job.head.reply(choices) | job.costs(ends)


async def _infill_chunks(job: Job, params: SamplingParams) -> AsyncGenerator[bytes, None]:
    head, options = job.head, job.asked.stream_options
    found = await _infills(job, params)
    for number, one in enumerate(found):
        for word in words(one.text):
            yield sse.event(head.reply([choice(number, word)]))
        told_costs = {k: v for k, v in costs([one.end]).items() if k != "usage"}
        yield sse.event(head.reply([choice(number, "", "stop")]) | told_costs)
    ends = [one.end for one in found]
    count(job.service, ends)
    if options and options.include_usage:
        yield sse.event(head.reply([]) | job.costs(ends))
