"""Several drafts of one answer, ranked by the encoder's verdict on each.

A canvas shows how sure each token was, but not how likely the whole text is; the encoder, which
reads from left to right, does. Knows requests and verdicts; knows nothing about canvases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """Run drafts and rank them by the encoder's verdict on each, which comes with the draft.

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
    outputs = yield from run([_judged(request) for request in requests])
    worth = [_worth(output) for output in outputs]
    for number, request in enumerate(requests):
        if not request.params.verdict:
            outputs[number] = replace(outputs[number], verdict=None)
    order = sorted(range(len(outputs)), key=lambda number: (-worth[number], number))
    return tuple(Draft(output=outputs[n], logprob=worth[n], number=n) for n in order)


def _judged(request: Request) -> Request:
    """The same request, whose answer comes with the encoder's verdict."""
    return replace(request, params=replace(request.params, verdict=True))


def _worth(output: Output) -> float:
    """The mean log-probability of an answer's tokens."""
    found = output.verdict
    return found.mean if found is not None and found.logprobs else -math.inf


def counted(n: object, name: str = "n") -> None:
    """Refuse a value that is not a count of drafts.

    Raises:
        InvalidRequest: it is not; the message has this name.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidRequest(f"{name} must be an integer from 1, got {n!r}", field=name)


def drafts(
    prompts: Sequence[Sequence[int]], params: SamplingParams, n: int, **fields: Any
) -> list[Request]:
    """Requests for n drafts of each prompt, side by side; seeds count up from the given one.

    Args:
        fields: of every request.

    Raises:
        InvalidRequest: n is below 1.
    """
    counted(n)
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
    counted(n)
    if of < n:
        raise bad_field("best_of", f"{of} is below n {n}; ask for at least as many drafts")
    out: list[Output] = []
    for low in range(0, len(requests), of):
        ranked = yield from best_of(facts, requests[low : low + of])
        out += [draft.output for draft in ranked[:n]]
    return out
