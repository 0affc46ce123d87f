"""The server's view of a loaded model: `dgemma.LLM` fits, and so does a fake.

Knows names and plain values. Knows nothing about HTTP.
"""

from __future__ import annotations

from typing import Any, Protocol

from dgemma.compose.calibration import Calibration
from dgemma.events import EventStream
from dgemma.frontend import Frontend
from dgemma.params import SamplingParams
from dgemma.types import ModelAbout, Output, Request


class Model(Protocol):
    """A loaded model with its engine."""

    defaults: SamplingParams
    frontend: Frontend
    calibration: Calibration
    about: ModelAbout

    def submit(self, request: Request) -> EventStream:
        """Start a request; `async for` its stream, or `close` it."""
        ...

    def counters(self) -> Any:
        """The engine's counts, a dataclass of numbers."""
        ...

    def close(self, *, finish: bool = False) -> None:
        """End or finish all requests."""
        ...


async def result(stream: EventStream) -> Output:
    """Wait for a request's output; a cancelled task cancels the request."""
    try:
        async for event in stream:
            if event.output is not None:
                return event.output
    finally:
        stream.close()
    raise AssertionError("a stream ends with an output")
