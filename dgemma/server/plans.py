"""Runs a plan of `dgemma.compose` for a route: its requests are the caller's, and end with it.

Knows plans and the service. Knows nothing about paths or bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dgemma.compose.fill import infill
from dgemma.compose.plan import Plan, refuse
from dgemma.errors import InvalidRequest
from dgemma.params import REFUSED_BY_FILL, SamplingParams, canvas_width
from dgemma.server.errors import closing
from dgemma.server.model import result
from dgemma.server.pieces import End, Times
from dgemma.server.sampling_fields import SamplingFields
from dgemma.server.service import Service
from dgemma.text.answer import first_stop
from dgemma.types import Output, Request, Usage

T = TypeVar("T")


async def run_plan(
    service: Service, plan: Plan[T], owner: str, *, chat: bool = False
) -> tuple[T, int]:
    """Run a plan to its end; cancelling this ends all that it has begun.

    Returns:
        What the plan gives, and the positions of the widest canvas that was run.

    Raises:
        DGemmaError, Refusal: what the plan or one of its requests says.
    """
    outputs: list[Output] | None = None
    widest = 0
    try:
        while True:
            requests, done = await service.aside(_advance, plan, outputs)
            if done:
                found: T = done[0]
                return found, widest
            for request in requests:
                if request.mode == "diffusion":
                    widest = max(widest, canvas_width(request.params, service.facts.canvas))
            streams = await service.submit(requests, owner=owner, chat=chat)
            try:
                outputs = list(await asyncio.gather(*(result(stream) for stream in streams)))
            finally:
                for stream in streams:
                    stream.close()
            if service.closing and any(one.finish_reason == "cancelled" for one in outputs):
                raise closing()
    finally:
        with contextlib.suppress(ValueError):  # cancelled while a thread is still within the plan
            plan.close()


def _advance(
    plan: Plan[T], outputs: Sequence[Output] | None
) -> tuple[Sequence[Request], tuple[T, ...]]:
    """The plan's next requests, or its value. (No future can hold a StopIteration.)"""
    try:
        return (next(plan) if outputs is None else plan.send(outputs)), ()
    except StopIteration as over:
        return (), (over.value,)


def plan_params(
    body: SamplingFields, service: Service, *, stop: bool = False, strength: bool = False
) -> SamplingParams:
    """How a plan draws that makes its canvases itself; what it has no use for is refused.

    Args:
        stop: the route fills a hole, and cuts its text at stop strings itself.
        strength: the route has a use for `diffusion.strength`.

    Raises:
        InvalidRequest, Refusal: the message names the field.
    """
    shown = body.shown
    barred = {
        "diffusion_seed_canvas": body.diffusion_seed_canvas is not None,
        "diffusion_pinned": body.diffusion_pinned is not None,
        "diffusion_read_only": body.diffusion_read_only,
        "logprob_token_ids": body.logprob_token_ids is not None,
        "diffusion.strength": shown.strength is not None and not strength,
        "diffusion.stream": shown.stream != "off",
        "diffusion.stream_interval": shown.stream_interval != 1,
        "diffusion.stable_prefix": shown.stable_prefix,
    }
    for name, given in barred.items():
        if given:
            raise InvalidRequest(
                f"{name} has no meaning here, where canvases are made from texts; leave it out, "
                "or use /v1/canvas",
                field=name,
            )
    params = body.params(service.settings.limits)
    if not stop:
        return params
    params = replace(params, stop=None)
    refuse(
        params, REFUSED_BY_FILL,
        "the text around a hole is given; steer by max_tokens or logit_bias",
    )  # fmt: skip
    return params


def cut(text: str, stop: str | Sequence[str] | None) -> tuple[str, str | None]:
    """A text up to the first stop string, and which one that was."""
    found = first_stop(text, [stop] if isinstance(stop, str) else stop or ())
    return (text, None) if found is None else (text[: found[0]], found[1])


def ended(
    spent: Usage, prompt_tokens: int, completion_tokens: int, *, seed: int, width: int,
    seconds: float,
) -> End:  # fmt: skip
    """What a plan cost, as the end of an answer that one request might have given.

    Args:
        spent: by all requests, those that only looked for something included.
        prompt_tokens: of one of them.
        completion_tokens: of the text that came of it.
    """
    usage = replace(spent, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    times = Times(text_s=seconds, total_s=seconds)
    return End(Output(seed=seed, usage=usage), times, width, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Infilled:
    """What was written between two texts: the text, the stop string that cut it, its cost."""

    text: str
    stopped: str | None
    token_ids: tuple[int, ...]
    end: End


async def infilled(
    service: Service, owner: str, prefix: str, suffix: str, params: SamplingParams, *,
    stop: str | Sequence[str] | None = None, context: str | None = None,
) -> Infilled:  # fmt: skip
    """Write what stands between two texts.

    Raises:
        DGemmaError, Refusal: it cannot be done.
    """
    began = time.perf_counter()
    facts = service.facts
    plan = infill(facts, prefix, suffix, params, context=context)
    filled, width = await run_plan(service, plan, owner)
    hole = filled.holes[0]
    text, stopped = cut(hole.text, stop)
    ids = hole.token_ids if stopped is None else tuple(facts.tokenizer.encode(text))
    prompt = filled.outputs[-1].usage.prompt_tokens if filled.outputs else 0
    end = ended(
        filled.usage, prompt, len(ids), seed=filled.seed, width=width,
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    return Infilled(text=text, stopped=stopped, token_ids=ids, end=end)
