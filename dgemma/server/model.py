"""What the server needs of a loaded model: `dgemma.LLM` fits, and so does a fake.

Knows names and plain values. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from dgemma.compose.plan import ModelFacts, Plan
from dgemma.errors import Overloaded
from dgemma.params import SamplingParams
from dgemma.text.prompting import Prompter
from dgemma.text.stream import Stream
from dgemma.types import Output, Request

T = TypeVar("T")


class Model(Protocol):
    """A loaded model with its engine."""

    defaults: SamplingParams
    prompter: Prompter

    @property
    def facts(self) -> ModelFacts:
        """Canvas, context, end ids, tokenizer."""
        ...

    def submit(self, request: Request, *, chat: bool = False, calls: Any = None) -> Stream:
        """Start a request; `async for` its stream, or `close` it."""
        ...

    def counters(self) -> Any:
        """What runs now and what has run, a dataclass of numbers."""
        ...

    def close(self, *, finish: bool = False) -> None:
        """End or finish what runs."""
        ...


async def result(stream: Stream) -> Output:
    """Wait for a request's output; a cancelled task cancels the request."""
    try:
        async for event in stream:
            if event.output is not None:
                return event.output
    finally:
        stream.close()
    raise AssertionError("a stream ends with an output")


async def run(
    model: Model, requests: Sequence[Request], *, chat: bool = False, calls: Any = None
) -> list[Output]:
    """Run requests together. Where too many wait, those that were begun are cancelled.

    Raises:
        Overloaded: too many requests wait.
    """
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(model.submit(request, chat=chat, calls=calls))
    except Overloaded:
        for stream in streams:
            stream.close()
        raise
    return list(await asyncio.gather(*(result(stream) for stream in streams)))


async def follow(model: Model, plan: Plan[T], base: Mapping[str, Any] | None = None) -> T:
    """Run a plan of `dgemma.compose` to its end.

    Args:
        base: fields of `Request` that all its requests get (owner, priority, deadline_s).
    """
    try:
        requests = next(plan)
        while True:
            asked = [replace(request, **(base or {})) for request in requests]
            requests = plan.send(await run(model, asked))
    except StopIteration as done:
        found: T = done.value
        return found
    finally:
        plan.close()
