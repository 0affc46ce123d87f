"""POST /v1/edit/completions and /v1/apply/completions: what code editors ask of Mercury.

Knows both paths and Mercury's reply. Knows nothing about how an edit is made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from dgemma.compose.drafts import drafts
from dgemma.compose.edit import Edited, edit
from dgemma.compose.plan import refuse, run
from dgemma.errors import InvalidRequest
from dgemma.params import REFUSED_BY_EDIT
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.chat.reply import costs
from dgemma.server.apis.chat.route import count
from dgemma.server.apis.completions.reply import logged
from dgemma.server.apis.edit.schema import (
    EditReply,
    EditRequest,
    context,
    fenced,
    instruction,
    merging,
    unfenced,
)
from dgemma.server.apis.edit.sections import next_edit, update
from dgemma.server.pieces import End
from dgemma.server.plans import ended, plan_params, run_plan
from dgemma.server.reply_schema import ERRORS
from dgemma.server.service import Service
from dgemma.server.sse import unless_gone
from dgemma.types import Output

router = APIRouter(tags=["edit"])


@router.post("/v1/edit/completions", response_model=EditReply, responses=ERRORS)
async def edit_completions(
    request: HTTPRequest, body: EditRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """The region's new text, in a code fence."""
    model = service.look_up(body.model)
    logged(request, service, messages=[body.messages[0].content])
    found = next_edit(body.messages[0].content)
    params = plan_params(body, service, strength=True)
    refuse(params, REFUSED_BY_EDIT, "an edit is steered by its file alone")
    plan = edit(
        service.facts, found.file, instruction(found), [(found.start, found.end)], body.strength,
        params, context=context(found),
    )  # fmt: skip
    began = time.perf_counter()
    edited: Edited
    edited, width = await unless_gone(request, run_plan(service, plan, owner))
    new = edited.changes[0].new
    written = len(service.facts.tokenizer.encode(new))
    prompt = edited.outputs[-1].usage.prompt_tokens if edited.outputs else 0
    end = ended(
        edited.usage, prompt, written, seed=edited.seed, width=width,
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    return _reply("editcmpl", model, service, fenced(new), end)


@router.post("/v1/apply/completions", response_model=EditReply, responses=ERRORS)
async def apply_completions(
    request: HTTPRequest, body: EditRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """The whole file with the update applied."""
    model = service.look_up(body.model)
    logged(request, service, messages=[body.messages[0].content])
    found = update(body.messages[0].content)
    if not found.original.strip():
        raise InvalidRequest(
            "messages[0].content: the section <|original_code|> is empty",
            field="messages[0].content",
        )
    params = plan_params(body, service)
    began = time.perf_counter()

    async def applied() -> tuple[Sequence[Output], int]:
        prompt = await service.aside(service.model.frontend.message_ids, merging(found))
        return await run_plan(service, run(drafts([prompt], params, 1)), owner, chat=True)

    (output,), width = await unless_gone(request, applied())
    spent = output.usage
    end = ended(
        spent, spent.prompt_tokens, spent.completion_tokens, seed=output.seed,
        width=width, seconds=time.perf_counter() - began,
    )  # fmt: skip
    reason = output.finish_reason
    return _reply("applycmpl", model, service, unfenced(output.text), end, reason)


def _reply(
    kind: str, model: str, service: Service, text: str, end: End, finish_reason: str = "stop"
) -> Response:
    count(service, [end])
    message = {"role": "assistant", "content": text}
    return JSONResponse({
        "id": f"{kind}-{secrets.token_hex(12)}", "object": "chat.completion",
        "created": int(time.time()), "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        **costs([end]),
    })  # fmt: skip
