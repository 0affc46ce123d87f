"""POST /v1/decisions and /v1/systemone: typed questions, answered by probabilities.

Knows both paths. Knows nothing about how questions are read from a canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter

from dgemma.compose.decide import Decision, decide, labels_of
from dgemma.compose.questions import Question, options
from dgemma.errors import InvalidRequest, bad_field
from dgemma.frontend import Messages, ModelFacts
from dgemma.server.apis.decisions.schema import (
    DecisionsReply,
    DecisionsRequest,
    SystemOneReply,
    SystemOneRequest,
    check_size,
    openai_answer,
    systemone_answer,
)
from dgemma.server.body_route import BodyRoute
from dgemma.server.errors import ERRORS
from dgemma.server.exchange import Exchange, HTTPExchange
from dgemma.server.limits import check_messages, check_schema
from dgemma.server.plans import PlanRun
from dgemma.server.service import Service
from dgemma.text.messages import clean_messages

router = APIRouter(tags=["decisions"], route_class=BodyRoute)
State = str | list[dict[str, Any]]


@router.post("/v1/decisions", response_model=DecisionsReply, responses=ERRORS)
async def decisions(body: DecisionsRequest, exchange: HTTPExchange) -> dict[str, Any]:
    """Decisions in OpenAI's form. A question that this model cannot answer gets a refusal."""
    asked = body.model_dump(exclude_none=True, by_alias=True)
    exchange.begin(body.model, input=body.input, questions=asked.get("questions", body.schema_))
    questions = await exchange.unless_gone(_questions(exchange, body))

    async def decided() -> dict[str, Any]:
        service = exchange.service
        refused = await exchange.in_thread(_refused, service.facts, questions, body.joint)
        left = [question for question in questions if question.name not in refused]
        found = await _decided(exchange, body, body.input, left)
        answers = {name: openai_answer(one) for name, one in found["answers"].items()} | refused
        ordered = [answers[question.name] for question in questions]
        return found | {"object": "decision", "answers": ordered}

    return await exchange.unless_gone(decided())


@router.post("/v1/systemone", response_model=SystemOneReply, responses=ERRORS)
async def systemone(body: SystemOneRequest, exchange: HTTPExchange) -> dict[str, Any]:
    """Decisions in System One's form."""
    shown = body.model_dump(exclude_none=True)["questions"]
    exchange.begin(body.model, state=body.state, questions=shown)
    found = await exchange.unless_gone(_decided(exchange, body, body.state, body.asked()))
    answers = {name: systemone_answer(one) for name, one in found["answers"].items()}
    return found | {"answers": answers}


async def _questions(exchange: Exchange, body: DecisionsRequest) -> Sequence[Question]:
    limits = exchange.service.settings.limits
    if body.schema_ is not None:
        check_schema(body.schema_, "schema", limits)
        await exchange.service.check_schema_aside(body.schema_, exchange.owner)
    return await exchange.in_thread(body.asked, limits)


def _refused(
    facts: ModelFacts, questions: Sequence[Question], joint: bool
) -> dict[str, dict[str, Any]]:
    """Refusals of questions that this model cannot answer, by name.

    Raises:
        InvalidRequest: a question that no model could answer as it is.
    """
    found: dict[str, dict[str, Any]] = {}
    for question in questions:
        options(question)
        try:
            labels_of(facts, question, joint)
        except InvalidRequest as error:
            name = question.name
            found[name] = {"type": "refusal", "name": name, "refusal": str(error)}
    return found


async def _decided(
    exchange: Exchange, body: DecisionsRequest | SystemOneRequest, given: State,
    questions: Sequence[Question],
) -> dict[str, Any]:  # fmt: skip
    """The reply, with the answers by name as `dgemma.compose` gives them.

    Each reading is one step of one canvas, and writes nothing.
    """
    check_size(len(questions), body.samples)
    service = exchange.service
    facts, state = await exchange.in_thread(_about, service, given, questions, body.joint)
    decision = Decision(answers=(), seed=body.seed)
    if questions:
        plan = decide(
            facts, state, questions, samples=body.samples, joint=body.joint, seed=body.seed,
            calibration=service.model.calibration, canvas_length=body.canvas_length,
        )  # fmt: skip
        decision = await PlanRun(exchange, plan).result()
    tokens, steps = decision.usage.prompt_tokens, decision.usage.steps
    service.metrics.prompt_tokens.inc(tokens)
    width = body.canvas_length or service.facts.canvas
    return {
        "model": service.name,
        "answers": {answer.name: answer for answer in decision.answers},
        "seed": decision.seed,
        "usage": {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens},
        "diffusion_usage": {
            "canvases": steps, "steps": steps, "discarded_steps": 0, "canvas_tokens": steps * width,
            "tokens_per_step": 0.0,
        },
    }  # fmt: skip


def _about(
    service: Service, given: State, questions: Sequence[Question], joint: bool
) -> tuple[ModelFacts, str | Sequence[int]]:
    """Facts that ask within the conversation, and the state that the questions are about.

    A conversation that asks already (no question has instructions) is the whole prompt; else its
    last user's message is the state, which the questions follow.

    Raises:
        InvalidRequest: messages of another form.
    """
    if isinstance(given, str):
        return service.facts, given
    check_messages(given, service.settings.limits)
    messages = clean_messages(given)
    if not joint and not any(question.instructions for question in questions):
        return service.facts, service.chat_ids(messages)
    last = messages[-1]
    if last["role"] != "user":
        raise bad_field("messages", "must end with a user's message, which the questions follow")
    history: Messages = messages[:-1]

    def ask(message: str) -> list[int]:
        return service.chat_ids([*history, {"role": "user", "content": message}])

    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return replace(service.facts, ask=ask), text
