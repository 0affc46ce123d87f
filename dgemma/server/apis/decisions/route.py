"""POST /v1/decisions and /v1/systemone: typed questions, answered by probabilities.

Knows both paths. Knows nothing about how questions are read from a canvas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dgemma.compose.decide import Decision, decide, labels_of
from dgemma.compose.questions import Question, options
from dgemma.errors import InvalidRequest
from dgemma.frontend import Messages, ModelFacts
from dgemma.server.access import Owner, TheService
from dgemma.server.apis.completions.reply import logged
from dgemma.server.apis.decisions.schema import (
    DecisionsReply,
    DecisionsRequest,
    SystemOneReply,
    SystemOneRequest,
    asked,
    check_size,
    named,
    openai_answers,
    systemone_answers,
)
from dgemma.server.plans import run_plan
from dgemma.server.reply_schema import ERRORS
from dgemma.server.service import Service
from dgemma.server.sse import unless_gone
from dgemma.text.messages import clean_messages

router = APIRouter(tags=["decisions"])
State = str | Sequence[int]


@router.post("/v1/decisions", response_model=DecisionsReply, responses=ERRORS)
async def decisions(
    request: Request, body: DecisionsRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """Decisions in OpenAI's form. A question that this model cannot answer gets a refusal."""
    model = service.look_up(body.model)
    logged(request, service, input=body.input, questions=_shown(body.questions))
    questions = asked(body.questions)
    names = [question.name for question in questions]

    async def decided() -> tuple[Decision, dict[str, str]]:
        refused = await service.aside(_refused, service.facts, questions, body.joint)
        left = [question for question in questions if question.name not in refused]
        return await _decide(service, owner, body, body.input, left), refused

    decision, refused = await unless_gone(request, decided())
    return JSONResponse({
        "object": "decision", "model": model,
        "answers": openai_answers(names, decision, refused), **_costs(decision, body, service),
    })  # fmt: skip


@router.post("/v1/systemone", response_model=SystemOneReply, responses=ERRORS)
async def systemone(
    request: Request, body: SystemOneRequest,
    service: TheService,
    owner: Owner,
) -> Response:  # fmt: skip
    """Decisions in System One's form."""
    model = service.look_up(body.model)
    logged(request, service, state=body.state, questions=_shown(body.questions.values()))
    questions = named(body.questions)
    decision = await unless_gone(request, _decide(service, owner, body, body.state, questions))
    return JSONResponse({
        "model": model, "answers": systemone_answers(decision),
        **_costs(decision, body, service),
    })  # fmt: skip


def _shown(questions: Iterable[BaseModel]) -> list[dict[str, Any]]:
    """For the log."""
    return [one.model_dump(exclude_none=True) for one in questions]


def _refused(facts: ModelFacts, questions: Sequence[Question], joint: bool) -> dict[str, str]:
    """Which questions this model cannot answer, by name, and why.

    Raises:
        InvalidRequest: a question that no model could answer as it stands.
    """
    found: dict[str, str] = {}
    for question in questions:
        options(question)
        try:
            labels_of(facts, question, joint)
        except InvalidRequest as error:
            found[question.name] = str(error)
    return found


async def _decide(
    service: Service, owner: str, body: DecisionsRequest | SystemOneRequest,
    given: str | list[dict[str, Any]], questions: Sequence[Question],
) -> Decision:  # fmt: skip
    check_size(len(questions), body.samples)
    facts, state = await service.aside(_about, service, given, questions, body.joint)
    if not questions:
        return Decision(answers=(), seed=body.seed)
    plan = decide(
        facts, state, questions, samples=body.samples, joint=body.joint, seed=body.seed,
        canvas_length=body.canvas_length,
    )  # fmt: skip
    decision, _ = await run_plan(service, plan, owner)
    service.metrics.prompt_tokens.inc(decision.usage.prompt_tokens)
    return decision


def _about(
    service: Service, given: str | list[dict[str, Any]], questions: Sequence[Question], joint: bool
) -> tuple[ModelFacts, State]:
    """What the questions are about, and facts that ask within its conversation.

    A conversation that asks already (no question has instructions) is the whole prompt; else its
    last user's message is the state, and the questions stand below it.

    Raises:
        InvalidRequest: messages of another form.
    """
    if isinstance(given, str):
        return service.facts, given
    messages = clean_messages(given)
    frontend = service.model.frontend
    if not joint and not any(question.instructions for question in questions):
        return service.facts, frontend.chat_ids(messages)
    last = messages[-1]
    if last["role"] != "user":
        raise InvalidRequest(
            "messages must end with a user's message, below which is asked", field="messages"
        )
    history: Messages = messages[:-1]

    def ask(message: str) -> list[int]:
        return frontend.chat_ids([*history, {"role": "user", "content": message}])

    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return replace(service.facts, ask=ask), text


def _costs(
    decision: Decision, body: DecisionsRequest | SystemOneRequest, service: Service
) -> dict[str, Any]:
    """What the readings cost: each is one step of one canvas, and writes nothing."""
    spent, width = decision.usage, body.canvas_length or service.facts.canvas
    return {
        "seed": decision.seed,
        "usage": {
            "input_tokens": spent.prompt_tokens, "output_tokens": 0,
            "total_tokens": spent.prompt_tokens,
        },
        "diffusion_usage": {
            "canvases": spent.steps, "steps": spent.steps, "canvas_tokens": spent.steps * width,
            "tokens_per_step": 0.0,
        },
    }  # fmt: skip
