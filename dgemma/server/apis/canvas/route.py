"""POST /v1/canvas: a canvas said in segments, and everything that is known of it afterwards.

Knows the path, and which way a request goes: text with holes is filled, anything else is laid
on one canvas. Knows nothing about how either is done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.compose.fill import Filled, fill, writing
from dgemma.compose.plan import Plan, refuse, run, seed_of
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import REFUSED_BY_EDIT, SamplingParams
from dgemma.server.access import Owner, TheService
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
from dgemma.server.apis.chat.reply import LEAST, costs
from dgemma.server.apis.chat.route import count
from dgemma.server.apis.completions.reply import logged
from dgemma.server.limits import limited
from dgemma.server.pieces import End, Times
from dgemma.server.plans import ended, plan_params, run_plan
from dgemma.server.reply_schema import ERRORS
from dgemma.server.service import Service
from dgemma.server.sse import unless_gone
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Request, TokenScore, TraceStep

router = APIRouter(tags=["canvas"])
Told = tuple[dict[str, Any], End]
"""The reply but for its head, and what it cost."""


@router.post("/v1/canvas", response_model=CanvasReply, responses=ERRORS)
async def canvas(
    request: HTTPRequest, body: CanvasRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """A canvas in segments."""
    model = service.look_up(body.model)
    segments = [one.model_dump(exclude_none=True) for one in body.segments]
    logged(request, service, messages=body.messages, prompt=body.prompt, segments=segments)
    began = time.perf_counter()
    found, end = await unless_gone(request, _written(service, owner, body))
    end = replace(end, times=Times(total_s=time.perf_counter() - began))
    count(service, [end])
    return JSONResponse({
        "id": f"canvas-{secrets.token_hex(12)}", "object": "canvas", "created": int(time.time()),
        "model": model, **found, **costs([end]),
    })  # fmt: skip


async def _written(service: Service, owner: str, body: CanvasRequest) -> Told:
    check(body.segments, body.strength)
    params = plan_params(body, service)
    refuse(
        params,
        REFUSED_BY_EDIT,
        "steer by allowed_token_ids and choices of a segment, or by logit_bias",
    )
    facts, context = await service.aside(_following, service, body)
    asked = body.returns
    plain = not (asked.trace or asked.logprobs or asked.alternatives or body.read_only)
    _within(body, service.settings.limits.max_tokens, bounded=not plain)
    if plain and is_text(body.segments):
        plan = fill(facts, parts(facts, body.segments), params, context=context)
        return _filled(body.segments, *await run_plan(service, plan, owner))
    seed = seed_of(params)
    placed = await service.aside(_place, facts, body, params, seed)
    laid = _laid(facts, body, replace(params, seed=seed), placed, context)
    output, _ = await run_plan(service, laid, owner)
    return _shown(body, output, placed, facts.tokenizer)


def _within(body: CanvasRequest, most: int | None, *, bounded: bool) -> None:
    """
    Args:
        most: the server's own bound.
        bounded: the segments' lengths are fixed.

    Raises:
        InvalidRequest, Refusal: a hole is too long, or a bound bounds nothing.
    """
    holes = [one for one in body.segments if role_of(one) == "hole"]
    longest = max((one.max_length or 0 for one in holes), default=0)
    if most is not None and longest > most:
        message = f"segments: a max_length of {longest} is above this server's {most}; ask for less"
        raise limited("segments", message)
    free = [one for one in holes if one.max_length is None and one.choices is None]
    if body.max_tokens is not None and (bounded or not free):
        raise InvalidRequest(
            "max_tokens has no meaning here: segments say how long they are", field="max_tokens"
        )


def _following(service: Service, body: CanvasRequest) -> tuple[ModelFacts, str | None]:
    """Facts whose prompt is what the canvas shall follow, and text for the user's message."""
    facts, frontend = service.facts, service.model.frontend
    if body.messages is not None and body.prompt is not None:
        raise InvalidRequest(
            "messages and prompt are two ways to say one thing; drop one", field="messages"
        )
    if body.messages is None and (body.prompt is None or isinstance(body.prompt, str)):
        return facts, body.prompt
    ids = frontend.prompt_ids(body.prompt or []) if body.messages is None else frontend.chat_ids(
        body.messages
    )  # fmt: skip
    return replace(facts, ask=lambda message: ids), None


def _place(
    facts: ModelFacts, body: CanvasRequest, params: SamplingParams, seed: int
) -> PlacedSegments:
    return place(
        facts, body.segments, strength=body.strength, seed=seed, read_only=body.read_only,
        canvas_length=params.canvas_length,
    )  # fmt: skip


def _laid(
    facts: ModelFacts, body: CanvasRequest, params: SamplingParams, placed: PlacedSegments,
    context: str | None,
) -> Plan[Output]:  # fmt: skip
    """One request with the canvas as it is said."""
    asked = body.returns
    params = replace(
        params, max_tokens=placed.content, canvas_length=placed.width,
        logprobs=asked.alternatives if asked.logprobs or asked.alternatives else None,
    )  # fmt: skip
    prompt = facts.prompt(writing(context, ""), (), placed.width)
    outputs = yield from run([
        Request(token_ids=prompt, params=params, canvas=placed.control, trace=True)
    ])  # fmt: skip
    return outputs[0]


def _filled(segments: Sequence[Segment], filled: Filled, width: int) -> Told:
    """The reply where holes were filled at lengths that were looked for, on canvases so wide."""
    holes = iter(filled.holes)
    shown: list[dict[str, Any]] = []
    for one in segments:
        if role_of(one) != "hole":
            shown.append({"role": "pinned", "text": one.text})
            continue
        hole = next(holes)
        table = [
            {"tokens": t.tokens, "reading": _number(t.reading), "score": _number(t.score),
             "final": None if t.final is None else _number(t.final), "chosen": t.chosen}
            for t in hole.lengths
        ]  # fmt: skip
        shown.append({
            "role": "hole", "text": hole.text, "tokens": list(hole.token_ids),
            "confidence": hole.confidence, "length_search": table,
        })  # fmt: skip
    written = sum(len(hole.token_ids) for hole in filled.holes)
    prompt = filled.outputs[-1].usage.prompt_tokens if filled.outputs else 0
    end = ended(filled.usage, prompt, written, seed=filled.seed, width=width, seconds=0)
    status = {"finish_reason": "stop", "converged": None}
    return {"text": filled.text, "segments": shown, "status": status}, end


def _shown(
    body: CanvasRequest, output: Output, placed: PlacedSegments, tokenizer: Tokenizer
) -> Told:
    """The reply where all stood on one canvas."""
    shown: list[dict[str, Any]] = []
    scores = output.scores if body.returns.logprobs or body.returns.alternatives else ()
    for one, at in zip(body.segments, placed.positions, strict=True):
        ids = output.token_ids[at.start : at.stop]
        role = role_of(one)
        kept = role == "pinned" and one.text is not None
        part: dict[str, Any] = {
            "role": role,
            "text": one.text if kept else tokenizer.decode(ids),
            "tokens": list(ids),
        }
        if scores:
            part["logprobs"] = [_score(tokenizer, s) for s in scores[at.start : at.stop]]
        shown.append(part)
    last = output.trace[-1].reason if output.trace else ""
    written = sum(
        len(part["tokens"]) for part in shown if part["role"] != "pinned" and not body.read_only
    )
    found: dict[str, Any] = {
        "text": "".join(part["text"] for part in shown), "segments": shown,
        "status": {
            "finish_reason": output.finish_reason,
            "converged": None if body.read_only else last == "converged",
        },
    }  # fmt: skip
    if body.returns.trace:
        found["trace"] = [_step(step) for step in output.trace]
    end = ended(
        output.usage, output.usage.prompt_tokens, written, seed=output.seed, width=placed.width,
        seconds=0,
    )  # fmt: skip
    return found, end


def _score(tokenizer: Tokenizer, score: TokenScore) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(score.token_id), "id": score.token_id,
        "logprob": _number(score.logprob), "entropy": _number(score.entropy),
        "alternatives": [
            {"token": tokenizer.token_text(i), "id": i, "logprob": _number(value)}
            for i, value in score.top
        ],
    }  # fmt: skip


def _step(step: TraceStep) -> dict[str, Any]:
    return {
        "canvas": step.canvas, "step": step.step, "temperature": step.temperature,
        "ids": list(step.ids), "argmax": list(step.argmax), "accepted": list(step.accepted),
        "entropy": [_number(value) for value in step.entropy], "reason": step.reason,
    }  # fmt: skip


def _number(value: float) -> float:
    return max(value, LEAST)
