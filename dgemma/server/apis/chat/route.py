"""`POST /v1/chat/completions`: a conversation answered, plain or as a stream.

Knows the order of things: check, start, then reply. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dgemma.compose.drafts import drafts
from dgemma.constrain.cache import Calls
from dgemma.errors import InvalidRequest
from dgemma.params import RELEASED, SamplingParams
from dgemma.server import sse
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.chat import reply as shapes
from dgemma.server.apis.chat.reply import costs, costs_beside
from dgemma.server.apis.chat.schema import ChatReply, ChatRequest
from dgemma.server.apis.completions.reply import STREAMED, logged, with_errors
from dgemma.server.limits import check_limit
from dgemma.server.pieces import (
    Call,
    Committed,
    End,
    Folded,
    Frame,
    Piece,
    PieceReader,
    Scores,
    StatusPiece,
    Text,
    Thought,
    fold,
)
from dgemma.server.reply_schema import ERRORS
from dgemma.server.service import Service
from dgemma.types import Request, TokenScore

router = APIRouter(tags=["chat"])


@dataclass(slots=True)
class ChatCall:
    """One call of the API with all its choices."""

    asked: ChatRequest
    service: Service
    readers: list[PieceReader]
    most_steps: int
    id: str
    created: int
    note: dict[str, Any]
    """What the log line of the request will hold besides."""

    def head(self, kind: str) -> dict[str, Any]:
        """What every reply and every chunk begins with."""
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.service.name,
        }  # fmt: skip

    def logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        """Of one choice, or a piece of it, where they were asked for."""
        if not self.asked.logprobs:
            return None
        return shapes.logprobs(
            scores, self.asked.logprob_token_ids or (), self.service.facts.tokenizer,
            as_ids=bool(self.asked.return_tokens_as_token_ids),
        )  # fmt: skip

    def close(self) -> None:
        """End whatever still runs."""
        for reader in self.readers:
            reader.close()

    def count(self, ends: list[End]) -> None:
        """Add the answer to the metrics and to the log."""
        count(self.service, ends)
        spent = shapes.usage(ends)
        self.note |= {name: spent[name] for name in ("prompt_tokens", "completion_tokens")}

    def wanted(self, piece: Piece) -> bool:
        """Whether a piece is told: one call at most where that was asked for."""
        one = self.asked.parallel_tool_calls is False
        return not (one and isinstance(piece, Call) and piece.index > 0)


def prepare(asked: ChatRequest, service: Service) -> tuple[list[Request], Calls | None]:
    """The requests to the model, and what is asked of their calls.

    Raises:
        DGemmaError, Refusal: what cannot be honoured.
    """
    limits = service.settings.limits
    count = asked.n or 1
    check_limit("n", count, limits.n)
    params = asked.params(limits)
    shown, calls = asked.called(limits)
    if calls is not None and calls.must and params.constraint_field is not None:
        raise InvalidRequest(
            "response_format and a required tool call cannot be combined", field="response_format"
        )
    ids = service.model.frontend.chat_ids(asked.messages, shown, asked.thinking.asked)
    control = asked.canvas(service.facts, params)
    requests = [
        replace(request, frames=asked.drafts, status=asked.drafts, canvas=control)
        for request in drafts([ids], params, count)
    ]
    return requests, calls


def most_steps(request: Request, service: Service) -> int:
    """Denoising steps that a canvas may take."""
    once = request.canvas is not None and request.canvas.read_only
    own = request.params.merged(SamplingParams(max_steps=1 if once else None))
    found = own.merged(service.model.defaults).merged(RELEASED).max_steps
    assert found is not None
    return found


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses={**ERRORS, **STREAMED},
    summary="Answer a conversation",
)
async def chat_completions(
    asked: ChatRequest,
    http: HttpRequest,
    service: TheService,
    owner: Owner,
) -> Response:
    """OpenAI's chat API, with drafts of the canvas on request."""
    service.look_up(asked.model)
    note = logged(http, service, messages=asked.messages)
    job = await sse.unless_gone(http, begun(asked, service, owner, note))
    if asked.stream:
        source = with_errors(chunks(job), http, service, done=True)
        return sse.EventStreamResponse(source, service.settings.heartbeat_s, job.close)
    try:
        return JSONResponse(await sse.unless_gone(http, reply(job)))
    finally:
        job.close()


async def begun(asked: ChatRequest, service: Service, owner: str, note: dict[str, Any]) -> ChatCall:
    """The call with its requests at work.

    Raises:
        DGemmaError, Refusal: what cannot be honoured.
    """
    requests, calls = await service.aside(prepare, asked, service)
    streams = await service.submit(requests, owner=owner, chat=True, calls=calls)
    return ChatCall(
        asked=asked, service=service,
        readers=[
            PieceReader(
                service.facts, request, stream, chat=True, every=asked.shown.stream_interval,
                must_call=calls is not None and calls.must,
            )
            for request, stream in zip(requests, streams, strict=True)
        ],
        most_steps=most_steps(requests[0], service),
        id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()), note=note,
    )  # fmt: skip


async def reply(job: ChatCall) -> dict[str, Any]:
    """The plain reply."""
    folded = list(await asyncio.gather(*(_folded(job, reader) for reader in job.readers)))
    ends = [one.ended for one in folded]
    job.count(ends)
    choices = [
        {
            "index": number,
            "message": shapes.message(one),
            "logprobs": job.logprobs(one.scores),
            "finish_reason": shapes.finish_reason(one.ended, len(one.calls)),
        }
        for number, one in enumerate(folded)
    ]
    return job.head("chat.completion") | {"choices": choices} | costs(ends)


async def _folded(job: ChatCall, reader: PieceReader) -> Folded:
    async def wanted() -> AsyncGenerator[Piece, None]:
        source = reader.pieces()
        try:
            async for piece in source:
                if job.wanted(piece):
                    yield piece
        finally:
            await source.aclose()

    return await fold(wanted())


def count(service: Service, ends: Sequence[End], each: int | None = None) -> None:
    """Add answers to the metrics.

    Args:
        each: so many of them share a prompt; None: all.
    """
    metrics = service.metrics
    for one in ends[:: each or len(ends)]:
        metrics.prompt_tokens.inc(one.output.usage.prompt_tokens)
    for end in ends:
        metrics.completion_tokens.inc(end.output.usage.completion_tokens)
        if end.times.text_s is not None:
            metrics.first_text.observe(end.times.text_s)


async def chunks(job: ChatCall) -> AsyncGenerator[bytes, None]:
    """The stream, without its last line."""
    head = job.head("chat.completion.chunk")
    if job.asked.stream_options and job.asked.stream_options.include_usage:
        head["usage"] = None
    source = sse.merge([reader.pieces() for reader in job.readers])
    try:
        for number in range(len(job.readers)):
            yield sse.event(head | choice(number, {"role": "assistant"}))
        folded = [Folded() for _ in job.readers]
        async for number, piece in source:
            if not job.wanted(piece):
                continue
            folded[number].add(piece)
            for part in _chunks_of(job, number, piece, folded[number]):
                yield sse.event(head | part)
        ends = [one.ended for one in folded]
        job.count(ends)
        if "usage" in head:
            yield sse.event(head | {"choices": []} | costs(ends))
    finally:
        await source.aclose()


def choice(number: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A chunk's choices."""
    return {
        "choices": [
            {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        ]
    }  # fmt: skip


def _chunks_of(
    job: ChatCall, number: int, piece: Piece, so_far: Folded
) -> Iterator[dict[str, Any]]:
    """The chunks that tell one piece."""
    asked = job.asked
    if isinstance(piece, Frame):
        yield _draft(job, number, piece)
    elif isinstance(piece, (StatusPiece, Committed)):
        if not asked.diffusing:
            yield choice(number, {}) | shapes.note(piece)
    elif isinstance(piece, Scores):
        part = choice(number, {})
        part["choices"][0]["logprobs"] = job.logprobs(piece.scores)
        yield part
    elif isinstance(piece, Text):
        if not asked.diffusing:  # there the content is a whole text each time
            yield choice(number, {"content": piece.text})
    elif isinstance(piece, Thought):
        yield choice(number, {"reasoning_content": piece.text})
    elif isinstance(piece, Call):
        yield choice(number, {"tool_calls": [{"index": piece.index} | shapes.tool_call(piece)]})
    else:
        content = shapes.content(so_far)
        if content is not None and (asked.diffusing or not content):
            yield choice(number, {"content": content})
        last = choice(number, {}, shapes.finish_reason(piece, len(so_far.calls)))
        yield last | ({} if len(job.readers) > 1 else costs_beside([piece]))


def _draft(job: ChatCall, number: int, piece: Frame) -> dict[str, Any]:
    if job.asked.diffusing:
        event = piece.event
        meta = {"diffusion_content": True, "step": event.step, "canvas": event.canvas}
        return choice(number, {"content": piece.whole}) | {"diffusion_meta": meta}
    tokens = job.asked.shown.stream == "tokens"
    side = shapes.frame(piece, job.most_steps, job.service.facts.tokenizer, tokens=tokens)
    return choice(number, {}) | side
