"""Runs requests and plans to their end, beside all others; `submit` starts one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dgemma.compose.drafts import best, drafts
from dgemma.compose.plan import Plan
from dgemma.errors import Overloaded
from dgemma.events import EventStream
from dgemma.frontend import Frontend
from dgemma.params import SamplingParams
from dgemma.types import Output, Request

T = TypeVar("T")

Submit = Callable[[Request], EventStream]


def run_requests(submit: Submit, requests: Sequence[Request]) -> list[Output]:
    """Run requests together and wait for all; after an error none of them runs on."""
    streams: list[EventStream] = []
    outputs: list[Output] = []
    try:
        for request in requests:
            while True:
                try:
                    streams.append(submit(request))
                    break
                except Overloaded:  # more than may wait: first let some be finished
                    if len(outputs) == len(streams):
                        raise
                    outputs.append(streams[len(outputs)].result())
        return outputs + [stream.result() for stream in streams[len(outputs) :]]
    finally:
        for stream in streams:
            stream.close()
        for stream in streams:
            deque(stream, maxlen=0)


def run_plan(submit: Submit, plan: Plan[T]) -> T:
    """Run a plan and return its result."""
    try:
        requests = next(plan)
        while True:
            requests = plan.send(run_requests(submit, requests))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        plan.close()


def run_drafts(
    submit: Submit, frontend: Frontend, prompts: Sequence[Sequence[int]], params: SamplingParams,
    *, n: int, best_of: int | None, **fields: Any,
) -> list[Output]:  # fmt: skip
    """n drafts of each prompt, side by side; with `best_of` the best n of so many.

    Args:
        fields: of every request.

    Raises:
        InvalidRequest: n is below 1, or `best_of` below n.
    """
    requests = drafts(prompts, params, best_of or n, **fields)
    if best_of is None:
        return run_requests(submit, requests)
    return run_plan(submit, best(frontend.facts, requests, n, best_of))
