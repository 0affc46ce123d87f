"""POST /v1/edit/completions and /v1/apply/completions: the requests of code editors to Mercury.

Knows both paths and Mercury's reply. Knows nothing about how an edit is made.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from dgemma.compose.drafts import drafts
from dgemma.compose.edit import Edited, edit
from dgemma.compose.plan import refuse, run
from dgemma.params import REFUSED_BY_EDIT, SamplingParams
from dgemma.server.accounting import costs
from dgemma.server.apis.edit.schema import (
    EditReply,
    EditRequest,
    context,
    fenced,
    instruction,
    merging,
    unfenced,
)
from dgemma.server.apis.edit.sections import Update, read_next_edit, read_update
from dgemma.server.choices import head
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import Exchange, HTTPExchange
from dgemma.server.pieces import End
from dgemma.server.plans import plan_params, run_plan

router = APIRouter(tags=["edit"])


@router.post("/v1/edit/completions", response_model=EditReply, responses=ERRORS)
async def edit_completions(body: EditRequest, exchange: HTTPExchange) -> Response:
    """The region's new text, in a code fence."""
    exchange.begin(body.model, messages=[body.text])
    found, facts = read_next_edit(body.text), exchange.service.facts
    params = plan_params(body, exchange.service, strength=True)
    refuse(params, REFUSED_BY_EDIT, "an edit is steered by its file alone")
    plan = edit(
        facts, found.file, instruction(found), [(found.start, found.end)], body.strength, params,
        context=context(found),
    )  # fmt: skip

    async def edited() -> dict[str, Any]:
        done: Edited
        done, ran = await run_plan(exchange, plan)
        new = done.changes[0].new
        end = ran.end_of(done, new, len(facts.tokenizer.encode(new)))
        return _reply("editcmpl", exchange, fenced(new), end)

    return await exchange.reply(edited())


@router.post("/v1/apply/completions", response_model=EditReply, responses=ERRORS)
async def apply_completions(body: EditRequest, exchange: HTTPExchange) -> Response:
    """The whole file with the update applied."""
    exchange.begin(body.model, messages=[body.text])
    found = read_update(body.text)
    return await exchange.reply(_applied(exchange, found, plan_params(body, exchange.service)))


async def _applied(exchange: Exchange, found: Update, params: SamplingParams) -> dict[str, Any]:
    service = exchange.service
    prompt = await service.in_thread(service.model.frontend.message_ids, merging(found))
    (output,), ran = await run_plan(exchange, run(drafts([prompt], params, 1, chat=True)))
    return _reply("applycmpl", exchange, unfenced(output.text), ran.end(output))


def _reply(prefix: str, exchange: Exchange, text: str, end: End) -> dict[str, Any]:
    exchange.count([end])
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": end.output.finish_reason}
    begun = head(prefix, exchange.service.name)
    return begun | {"object": "chat.completion", "choices": [choice]} | costs([end])
