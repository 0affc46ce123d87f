"""Several drafts of one answer, ranked by the model's own reading of them.

A canvas shows how sure each token was, but not how likely the whole text is; the encoder, which
reads from left to right, does. Knows requests and their scores; knows nothing about canvases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dgemma.compose.length import mean
from dgemma.compose.plan import Plan, check_facts, run
from dgemma.errors import InvalidRequest, bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams
from dgemma.types import Output, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One draft.

    Attributes:
        output: the answer.
        logprob: mean log-probability, in nats, of its tokens and of its end where it has one;
            minus infinity for a draft without a token.
        number: which of the requests made it, from 0.
    """

    output: Output
    logprob: float
    number: int


def best_of(facts: ModelFacts, requests: Sequence[Request]) -> Plan[tuple[Draft, ...]]:
    """Run drafts and rank them.

    Args:
        facts: of the model.
        requests: as a rule of one prompt with several seeds.

    Returns:
        The best first; equals in the order of the requests.

    Raises:
        InvalidRequest: no requests.
        EngineError: a draft failed.
    """
    check_facts(facts)
    if not requests:
        raise bad_field("best_of", "needs at least one request; ask for at least one draft")
    outputs = yield from run(requests)
    asked: list[tuple[int, Request]] = []
    for number, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        ids = output.token_ids
        if output.finish_reason == "stop" and not request.params.stop:  # at an end id
            ids = (*ids, facts.end_id)
        prompt = output.prompt_ids or request.token_ids
        ids = (*prompt, *ids)[: facts.context - 1]  # reading takes room for a token too
        if len(ids) > len(prompt):
            reading = Request(
                token_ids=ids, params=SamplingParams(logprobs=0), mode="score",
                score_from=len(prompt), index=number, contents=request.contents,
                priority=request.priority,
            )  # fmt: skip
            asked.append((number, reading))
    read = yield from run([request for _, request in asked])
    worth = dict.fromkeys(range(len(outputs)), -math.inf)
    for (number, _), output in zip(asked, read, strict=True):
        worth[number] = mean([score.logprob for score in output.scores])
    order = sorted(worth, key=lambda number: (-worth[number], number))
    return tuple(Draft(output=outputs[n], logprob=worth[n], number=n) for n in order)


def _counted(n: object) -> None:
    """Refuse a value that is not a count of drafts."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidRequest(f"n must be an integer from 1, got {n!r}", field="n")


def drafts(
    prompts: Sequence[Sequence[int]], params: SamplingParams, n: int, **fields: Any
) -> list[Request]:
    """Requests for n drafts of each prompt, side by side; seeds count up from the given one.

    Args:
        fields: of every request.

    Raises:
        InvalidRequest: n is below 1.
    """
    _counted(n)
    out: list[Request] = []
    for prompt in prompts:
        for number in range(n):
            own = params
            if params.seed is not None and number:
                own = replace(params, seed=(params.seed + number) % 2**64)
            out.append(Request(token_ids=tuple(prompt), params=own, index=len(out), **fields))
    return out


def best(facts: ModelFacts, requests: Sequence[Request], n: int, of: int) -> Plan[list[Output]]:
    """The best n of every `of` requests, the best first.

    Raises:
        InvalidRequest: n is below 1, or `of` below n.
        EngineError: a draft failed.
    """
    check_facts(facts)
    _counted(n)
    if of < n:
        raise bad_field("best_of", f"{of} is below n {n}; ask for at least as many drafts")
    out: list[Output] = []
    for low in range(0, len(requests), of):
        ranked = yield from best_of(facts, requests[low : low + of])
        out += [draft.output for draft in ranked[:n]]
    return out
