"""POST /v1/canvas: a canvas in segments, and all that is known of it afterwards.

Knows which way a request goes: text with holes is filled, anything else is placed on one canvas.
Knows nothing about how either is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter

from dgemma.compose.fill import Filled, fill, writing
from dgemma.compose.plan import refuse, run, seed_of
from dgemma.errors import bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import REFUSED_BY_EDIT, SamplingParams
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
from dgemma.server.choices import head
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import Exchange, HTTPExchange
from dgemma.server.limits import check_limit
from dgemma.server.pieces import End
from dgemma.server.plans import PlanRun, plan_params, run_plan
from dgemma.server.service import Service
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Request, TokenScore

router = APIRouter(tags=["canvas"])
Written = tuple[dict[str, Any], End]
"""The fields of the reply that are its own, and the cost."""


@router.post(
    "/v1/canvas", response_model=CanvasReply, responses=ERRORS, response_model_exclude_unset=True
)
async def canvas(body: CanvasRequest, exchange: HTTPExchange) -> dict[str, Any]:
    """A canvas in segments."""
    segments = [one.model_dump(exclude_none=True) for one in body.segments]
    model = exchange.begin(
        body.model, messages=body.messages, prompt=body.prompt, segments=segments
    )
    found, end = await exchange.unless_gone(_written(exchange, body))
    exchange.count([end])
    return head("canvas", model) | {"object": "canvas"} | found | costs([end])


async def _written(exchange: Exchange, body: CanvasRequest) -> Written:
    service = exchange.service
    check(body.segments, body.strength)
    params = plan_params(body, service)
    why = "steer by allowed_token_ids and choices of a segment, or by logit_bias"
    refuse(params, REFUSED_BY_EDIT, why)
    facts, context = await service.in_thread(_following, service, body)
    asked = body.returns
    plain = not (asked.trace or asked.logprobs or asked.alternatives or body.read_only)
    _check_lengths(body, service.settings.limits.max_tokens, bounded=not plain)
    if plain and is_text(body.segments):
        filled, ran = await run_plan(
            exchange, fill(facts, parts(facts, body.segments), params, context=context)
        )
        return _filled(body.segments, filled, ran)
    seed = seed_of(params)
    placed = await service.in_thread(place, facts, body, params, seed)
    plan = run([_request(facts, body, replace(params, seed=seed), placed, context)])
    [output], ran = await run_plan(exchange, plan)
    return _shown(body, output, placed, facts.tokenizer, ran)


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
    ids = frontend.prompt_ids(body.prompt or []) if body.messages is None else frontend.chat_ids(
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
    return Request(token_ids=prompt, params=params, canvas=placed.control, trace=True)


def _filled(segments: Sequence[Segment], filled: Filled, ran: PlanRun) -> Written:
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
    body: CanvasRequest, output: Output, placed: PlacedSegments, tokenizer: Tokenizer, ran: PlanRun
) -> Written:
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
