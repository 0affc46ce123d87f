"""POST /v1/canvas: a canvas in segments, and all that is known of it afterwards.

Knows which way a request goes: text with holes is filled, anything else is placed on one canvas.
Knows nothing about how either is done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.compose.fill import Filled, fill, writing
from dgemma.compose.plan import Place, refuse, seed_of
from dgemma.compose.plan import run as run_together
from dgemma.errors import bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import REFUSED_BY_EDIT, SamplingParams
from dgemma.server import sse
from dgemma.server.accounting import costs
from dgemma.server.apis.canvas.reply import CanvasReply
from dgemma.server.apis.canvas.schema import (
    CanvasRequest,
    PlacedSegments,
    Segment,
    check,
    is_text,
    parts,
    place,
    role_of,
)
from dgemma.server.body_route import BodyRoute
from dgemma.server.choices import head
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.frames import FrameWriter, progress
from dgemma.server.limits import check_limit
from dgemma.server.pieces import End, Frame
from dgemma.server.plans import PlanRun, plan_params
from dgemma.server.service import Service
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Request, TokenScore

T = TypeVar("T")
router = APIRouter(tags=["canvas"], route_class=BodyRoute)
Written = tuple[dict[str, Any], End]
"""The fields of the reply that are its own, and the cost."""


@router.post(
    "/v1/canvas", response_model=CanvasReply, responses={**ERRORS, **STREAMED},
    response_model_exclude_unset=True,
)  # fmt: skip
async def canvas(body: CanvasRequest, exchange: HTTPExchange) -> Response:
    """A canvas in segments."""
    segments = [one.model_dump(exclude_none=True) for one in body.segments]
    exchange.begin(body.model, messages=body.messages, prompt=body.prompt, segments=segments)
    answer = await exchange.unless_gone(_answer(exchange, body))
    await answer.run.begin()
    return await exchange.send(answer, stream=body.stream)


@dataclass(frozen=True, slots=True)
class CanvasAnswer(Generic[T]):
    """The native reply; see `dgemma.server.exchange.Reply`.

    Attributes:
        segments: number of the segment that each part of the plan is.
        finished: from the plan's result to the reply.
    """

    exchange: Exchange
    body: CanvasRequest
    run: PlanRun[T]
    segments: Sequence[int]
    finished: Callable[[T], Written]

    async def whole(self) -> dict[str, Any]:
        """The plain reply."""
        return self._reply(await self.run.result(), head("canvas", self.exchange.service.name))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Drafts if they are asked for, text as soon as it is final, and the reply."""
        begun = head("canvas", self.exchange.service.name)
        part = begun | {"object": "canvas.chunk"}
        frames = FrameWriter(self.body.denoising, self.exchange.service.facts.tokenizer)
        async with aclosing(self.run.events()) as events:
            async for event in events:
                if event.type == "text":
                    fresh = {"segment": self.segments[event.part], "text": event.text}
                    yield sse.event(part | {"delta": fresh})
                elif event.type == "done":
                    yield sse.event(self._reply(event.outcome, begun))
                elif isinstance(piece := self.run.piece(event), Frame):
                    yield sse.event(part | frames.draft(piece))
                elif piece is not None:
                    yield sse.event(part | {"diffusion": progress(piece)})

    def _reply(self, result: T, begun: dict[str, Any]) -> dict[str, Any]:
        found, end = self.finished(result)
        self.exchange.count([end])
        reply = begun | {"object": "canvas"} | found | costs([end])
        shown = CanvasReply.model_validate(reply, from_attributes=True)
        return shown.model_dump(mode="json", by_alias=True, exclude_unset=True)


async def _answer(exchange: Exchange, body: CanvasRequest) -> CanvasAnswer[Any]:
    service, segments = exchange.service, body.segments
    check(segments, body.strength)
    params = plan_params(body, service, segments=True)
    why = "steer by allowed_token_ids and choices of a segment, or by logit_bias"
    refuse(params, REFUSED_BY_EDIT, why)
    facts, context = await exchange.in_thread(_following, service, body)
    asked = body.returns
    plain = not (asked.trace or asked.logprobs or asked.alternatives or body.read_only)
    _check_lengths(body, service.settings.limits.max_tokens, bounded=not plain)
    if plain and is_text(segments):
        if body.denoising.edits:
            why = "need one canvas of known lengths; give tokens or choices, or ask for a trace"
            raise bad_field("diffusion.edits", why)
        numbers = [n for n, one in enumerate(segments) if role_of(one) == "hole"]
        plan = fill(facts, parts(facts, segments), params, context=context)
        filling = PlanRun(exchange, plan, body.denoising, segments=numbers)
        return CanvasAnswer(
            exchange, body, filling, numbers, lambda filled: _filled(segments, filled, filling)
        )
    seed = seed_of(params)
    placed = await exchange.in_thread(place, facts, body, params, seed)
    request = _request(facts, body, replace(params, seed=seed), placed, context)
    where = [
        Place(part=n, start=at.start, stop=at.stop)
        for n, (one, at) in enumerate(zip(segments, placed.positions, strict=True))
        if role_of(one) != "pinned"
    ]  # fmt: skip
    numbers = list(range(len(segments)))
    run = PlanRun(exchange, run_together([request], [where]), body.denoising, segments=numbers)
    return CanvasAnswer(
        exchange, body, run, numbers,
        lambda outputs: _shown(body, outputs[0], placed, facts.tokenizer, run),
    )  # fmt: skip


def _check_lengths(body: CanvasRequest, most: int | None, *, bounded: bool) -> None:
    """
    Args:
        most: the server's own bound.
        bounded: the segments' lengths are fixed.

    Raises:
        InvalidRequest, Refusal: a hole is too long, or a bound bounds nothing.
    """
    free = False
    for number, one in enumerate(body.segments):
        check_limit(f"segments[{number}].max_length", one.max_length, most)
        free |= role_of(one) == "hole" and one.max_length is None and one.choices is None
    if body.max_tokens is not None and (bounded or not free):
        raise bad_field("max_tokens", "has no meaning here: segments say how long they are")


def _following(service: Service, body: CanvasRequest) -> tuple[ModelFacts, str | None]:
    """Facts with the prompt that the canvas follows, and text for the user's message."""
    facts, frontend = service.facts, service.model.frontend
    if body.messages is not None and body.prompt is not None:
        raise bad_field("messages", "and prompt are two ways to say one thing; drop one")
    if body.messages is None and (body.prompt is None or isinstance(body.prompt, str)):
        return facts, body.prompt
    ids = frontend.prompt_ids(body.prompt or []) if body.messages is None else service.chat_ids(
        body.messages
    )  # fmt: skip
    return replace(facts, ask=lambda message: ids), None


def _request(
    facts: ModelFacts, body: CanvasRequest, params: SamplingParams, placed: PlacedSegments,
    context: str | None,
) -> Request:  # fmt: skip
    """A request whose first canvas is given."""
    asked = body.returns
    params = replace(
        params, max_tokens=placed.content, canvas_length=placed.width,
        logprobs=asked.alternatives if asked.logprobs or asked.alternatives else None,
    )  # fmt: skip
    prompt = facts.prompt(writing(context, ""), (), placed.width)
    return Request(
        token_ids=prompt, params=params, canvas=placed.control, trace=True,
        edits=body.denoising.canvas_edits(),
    )  # fmt: skip


def _filled(segments: Sequence[Segment], filled: Filled, ran: PlanRun[Filled]) -> Written:
    """The reply for text with holes whose lengths were searched."""
    holes = iter(filled.holes)
    shown: list[dict[str, Any]] = []
    for one in segments:
        if role_of(one) != "hole":
            shown.append({"role": "pinned", "text": one.text})
            continue
        hole = next(holes)
        shown.append({
            "role": "hole", "text": hole.text, "tokens": hole.token_ids,
            "confidence": hole.confidence, "length_search": hole.lengths,
        })  # fmt: skip
    written = sum(len(hole.token_ids) for hole in filled.holes)
    status = {"finish_reason": "stop", "converged": None}
    found = {"text": filled.text, "segments": shown, "status": status}
    return found, ran.end_of(filled, filled.text, written)


def _shown(
    body: CanvasRequest, output: Output, placed: PlacedSegments, tokenizer: Tokenizer,
    ran: PlanRun[list[Output]],
) -> Written:  # fmt: skip
    """The reply for one canvas with all segments."""
    shown: list[dict[str, Any]] = []
    scores = output.scores if body.returns.logprobs or body.returns.alternatives else ()
    written = 0
    for one, at in zip(body.segments, placed.positions, strict=True):
        ids = output.token_ids[at.start : at.stop]
        role = role_of(one)
        text = one.text if role == "pinned" else None
        text = tokenizer.decode(ids) if text is None else text
        part: dict[str, Any] = {"role": role, "text": text, "tokens": ids}
        if scores:
            part["logprobs"] = [_score(tokenizer, s) for s in scores[at.start : at.stop]]
        shown.append(part)
        written += len(ids) if role != "pinned" and not body.read_only else 0
    last = output.trace[-1].reason if output.trace else ""
    found: dict[str, Any] = {
        "text": "".join(part["text"] for part in shown), "segments": shown,
        "status": {
            "finish_reason": output.finish_reason,
            "converged": None if body.read_only else last == "converged",
        },
    }  # fmt: skip
    if body.returns.trace:
        found["trace"] = output.trace
    usage = replace(output.usage, completion_tokens=written)
    return found, ran.end(replace(output, usage=usage))


def _score(tokenizer: Tokenizer, score: TokenScore) -> dict[str, Any]:
    name = tokenizer.token_text
    return {
        "token": name(score.token_id), "id": score.token_id, "logprob": score.logprob,
        "entropy": score.entropy,
        "alternatives": [{"token": name(i), "id": i, "logprob": value} for i, value in score.top],
    }  # fmt: skip
