"""POST /v1/edit/completions and /v1/apply/completions: the requests of code editors to Mercury.

Knows both paths and Mercury's reply. Knows nothing about how an edit is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.compose.drafts import drafts
from dgemma.compose.edit import Edited, edit
from dgemma.compose.plan import Place, refuse
from dgemma.compose.plan import run as run_together
from dgemma.errors import EngineError
from dgemma.params import REFUSED_BY_EDIT, canvas_width
from dgemma.server.apis.edit.reply import ApplyChoices, EditChoices
from dgemma.server.apis.edit.schema import (
    EditReply,
    EditRequest,
    context,
    fenced,
    instruction,
    merging,
    unfenced,
)
from dgemma.server.apis.edit.sections import read_next_edit, read_update
from dgemma.server.body_route import BodyRoute
from dgemma.server.choices import ChoiceFields
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import STREAMED, Exchange, HTTPExchange
from dgemma.server.pieces import End
from dgemma.server.plans import PlanRun, plan_params, whole_pieces
from dgemma.types import Output

T = TypeVar("T")
router = APIRouter(tags=["edit"], route_class=BodyRoute)


@router.post("/v1/edit/completions", response_model=EditReply, responses={**ERRORS, **STREAMED})
async def edit_completions(body: EditRequest, exchange: HTTPExchange) -> Response:
    """The region's new text, in a code fence."""
    exchange.begin(body.model, messages=[body.text])
    found, facts = await exchange.in_thread(read_next_edit, body.text), exchange.service.facts
    params = plan_params(body, exchange.service, strength=True)
    refuse(params, REFUSED_BY_EDIT, "an edit is steered by its file alone")
    plan = edit(
        facts, found.file, instruction(found), [(found.start, found.end)], body.strength, params,
        context=context(found),
    )  # fmt: skip
    run = PlanRun(exchange, plan, body.denoising)

    def edited(done: Edited) -> tuple[str, End]:
        new = done.changes[0].new
        return fenced(new), run.end_of(done, new, run.tokens(new))

    return await _sent(EditChoices, exchange, body, run, edited)


@router.post("/v1/apply/completions", response_model=EditReply, responses={**ERRORS, **STREAMED})
async def apply_completions(body: EditRequest, exchange: HTTPExchange) -> Response:
    """The whole file with the update applied."""
    exchange.begin(body.model, messages=[body.text])
    found, service = await exchange.in_thread(read_update, body.text), exchange.service
    params = plan_params(body, service)
    prompt = await exchange.unless_gone(
        exchange.in_thread(service.model.frontend.message_ids, merging(found))
    )
    width = canvas_width(params, service.facts.canvas)
    places = [[Place(start=0, stop=width)]]
    run = PlanRun(
        exchange, run_together(drafts([prompt], params, 1, chat=True), places), body.denoising
    )

    def applied(outputs: list[Output]) -> tuple[str, End]:
        if outputs[0].invalid_tool_calls:
            raise EngineError("the model wrote a tool call into the file; take another seed")
        return unfenced(outputs[0].text), run.end(outputs[0])

    return await _sent(ApplyChoices, exchange, body, run, applied)


async def _sent(
    kind: type[EditChoices], exchange: Exchange, body: EditRequest, run: PlanRun[T],
    finished: Callable[[T], tuple[str, End]],
) -> Response:  # fmt: skip
    """The reply, whose text is known at the end alone: a fence goes around all of it."""
    await run.begin()
    fields = ChoiceFields(stream=body.stream, diffusion=body.diffusion)
    choices = kind(exchange, [whole_pieces(run, finished)], fields)
    return await exchange.send(choices, stream=body.stream)
