"""Runs plans of `dgemma.compose` for a route: their requests are the caller's, and end with it.

Knows plans and the service. Knows nothing about paths or bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dgemma.compose.edit import Edited
from dgemma.compose.fill import Filled, infill
from dgemma.compose.plan import Plan, refuse
from dgemma.errors import bad_field
from dgemma.params import REFUSED_BY_FILL, SamplingParams, canvas_width
from dgemma.server.errors import closing
from dgemma.server.exchange import Exchange
from dgemma.server.model import result
from dgemma.server.pieces import End, Piece, Times, words
from dgemma.server.sampling_fields import SamplingFields
from dgemma.server.service import Service, close_all
from dgemma.text.answer import first_stop
from dgemma.types import Output, Request, TextDelta

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanRun:
    """The cost of a plan that has run.

    Attributes:
        width: positions of its widest canvas.
        seconds: the time it took.
    """

    width: int
    seconds: float

    def end(self, output: Output) -> End:
        """An answer of the plan as if one request had given it; its text comes at the end."""
        text_s = self.seconds if output.text else None
        return End(output, Times(text_s=text_s, total_s=self.seconds), self.width)

    def end_of(
        self, found: Filled | Edited, text: str, tokens: int, stopped_by: str | None = None
    ) -> End:
        """The same for a text, with the cost of all requests that led to it."""
        prompt = found.outputs[-1].usage.prompt_tokens if found.outputs else 0
        usage = replace(found.usage, prompt_tokens=prompt, completion_tokens=tokens)
        return self.end(Output(text=text, seed=found.seed, usage=usage, stopped_by=stopped_by))


async def run_plan(exchange: Exchange, plan: Plan[T]) -> tuple[T, PlanRun]:
    """Run a plan to its end; cancelling this ends all that it has begun.

    Raises:
        DGemmaError, Refusal: the plan or one of its requests fails.
    """
    service, began, widest = exchange.service, time.perf_counter(), 0
    outputs: list[Output] | None = None
    try:
        while True:
            requests, done = await service.in_thread(_advance, plan, outputs)
            if done:
                return done[0], PlanRun(widest, time.perf_counter() - began)
            for request in requests:
                if request.mode == "diffusion":
                    widest = max(widest, canvas_width(request.params, service.facts.canvas))
            streams = await service.submit(requests, owner=exchange.owner)
            try:
                outputs = list(await asyncio.gather(*(result(stream) for stream in streams)))
            finally:
                close_all(streams)
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
    """The parameters of a plan that makes its canvases itself.

    Args:
        stop: the route fills a hole, and cuts its text at stop strings itself.
        strength: the route uses `diffusion.strength`.

    Raises:
        InvalidRequest, Refusal: a field has no meaning for such a plan; the message names it.
    """
    shown = body.denoising
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
            why = "has no meaning for canvases made from texts; leave it out, or use /v1/canvas"
            raise bad_field(name, why)
    params = body.params(service.settings.limits)
    if not stop:
        return params
    params = replace(params, stop=None)
    why = "the text around a hole is given; steer by max_tokens or logit_bias"
    refuse(params, REFUSED_BY_FILL, why)
    return params


async def infilled(
    exchange: Exchange, prefix: str, suffix: str, params: SamplingParams, *,
    stop: str | Sequence[str] | None = None, context: str | None = None,
) -> End:  # fmt: skip
    """Write the text between two texts, up to the first stop string.

    Raises:
        DGemmaError, Refusal: it cannot be done.
    """
    facts = exchange.service.facts
    filled, ran = await run_plan(exchange, infill(facts, prefix, suffix, params, context=context))
    hole = filled.holes[0]
    found = first_stop(hole.text, [stop] if isinstance(stop, str) else stop or ())
    if found is None:
        return ran.end_of(filled, hole.text, len(hole.token_ids))
    text = hole.text[: found[0]]
    return ran.end_of(filled, text, len(facts.tokenizer.encode(text)), found[1])


async def infill_pieces(fill: Callable[[], Awaitable[End]]) -> AsyncGenerator[Piece, None]:
    """The pieces of a text that comes as a whole."""
    end = await fill()
    for word in words(end.output.text):
        yield TextDelta(word)
    yield end
