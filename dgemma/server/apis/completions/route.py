"""POST /v1/completions: plain text continued, or filled in before a suffix.

Knows the order of things: check, start, reply. Knows nothing about how an answer is drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.compose.drafts import best
from dgemma.compose.fill import infill
from dgemma.errors import bad_field
from dgemma.params import SamplingParams
from dgemma.server.apis.completions.reply import TextChoices
from dgemma.server.apis.completions.schema import CompletionRequest, TextReply
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.limits import check_rows, limited
from dgemma.server.pieces import Folded
from dgemma.server.plans import PlanRun, infill_pieces, plan_params
from dgemma.server.service import Service
from dgemma.server.threads import stop_if_left
from dgemma.types import Request

router = APIRouter(tags=["completions"], route_class=BodyRoute)


@router.post("/v1/completions", response_model=TextReply, responses={**ERRORS, **STREAMED})
async def completions(asked: CompletionRequest, exchange: HTTPExchange) -> Response:
    """OpenAI's old API for plain text."""
    exchange.begin(asked.model, prompt=asked.prompt, suffix=asked.suffix)
    _check_answers(asked, exchange.service)
    if asked.best_of is not None:
        return await exchange.reply(_best(asked, exchange))
    if asked.suffix is None:
        choices = await exchange.unless_gone(_started(asked, exchange))
    else:
        params = plan_params(asked, exchange.service, stop=True)
        choices = await _infills(asked, exchange, params)
    return await exchange.send(choices, stream=asked.stream)


async def _started(asked: CompletionRequest, exchange: Exchange) -> TextChoices:
    requests = await exchange.in_thread(_requests, asked, exchange.service)
    every = asked.denoising.stream_interval
    readers = await exchange.start(requests, every=every)
    return TextChoices(exchange, [reader.pieces() for reader in readers], asked)


async def _best(asked: CompletionRequest, exchange: Exchange) -> dict[str, Any]:
    requests = await exchange.in_thread(_requests, asked, exchange.service)
    plan = best(exchange.service.facts, requests, asked.n or 1, asked.best_of or 1)
    run = PlanRun(exchange, plan)
    outputs = await run.result()
    found = [Folded(one.text, scores=list(one.scores), end=run.end(one)) for one in outputs]
    return TextChoices(exchange, [], asked).folded(found)


async def _infills(
    asked: CompletionRequest, exchange: Exchange, params: SamplingParams
) -> TextChoices:
    """The text between prompt and suffix, n times, with seeds that count up."""
    assert isinstance(asked.prompt, str) and asked.suffix is not None
    sources = []
    for number in range(asked.n or 1):
        seed = None if params.seed is None else (params.seed + number) % 2**64
        own = replace(params, seed=seed)
        plan = infill(exchange.service.facts, asked.prompt, asked.suffix, own)
        run = PlanRun(exchange, plan, asked.denoising)
        await run.begin()
        sources.append(infill_pieces(run, stop=asked.stop))
    return TextChoices(exchange, sources, asked)


def _check_answers(asked: CompletionRequest, service: Service) -> None:
    """
    Raises:
        Refusal, InvalidRequest: more answers than one request may ask for, or no prompt.
    """
    most, prompts = service.settings.limits.n, len(asked.prompts())
    if not prompts:
        raise bad_field("prompt", "holds no text; give at least one")
    race = service.race(asked.values()["race"]) if asked.mode == "diffusion" else 1
    for name in ("n", "best_of"):
        each = getattr(asked, name) or 1
        check_rows(name, each, race, most)
        if prompts * each * race > most:
            raced = "" if race == 1 else f" and a race of {race}"
            raise limited(
                "prompt", f"prompt holds {prompts} texts with {name} {each}{raced}, "
                f"{prompts * each * race} answers, more than this server's {most} of one request; "
                "send several requests",
            )  # fmt: skip


def _requests(asked: CompletionRequest, service: Service) -> list[Request]:
    params = asked.params(service.settings.limits)
    prompts = []
    for prompt in asked.prompts():
        stop_if_left()
        prompts.append(service.model.frontend.prompt_ids(prompt))
    return asked.requests(service.facts, prompts, params, asked.best_of or asked.n or 1)
