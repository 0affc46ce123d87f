"""A tiny random network, an engine on it, requests for it, and checks of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dgemma.diffusion.canvas import Generation
from dgemma.engine.engine import Engine
from dgemma.engine.sequence import Sequence as Live
from dgemma.events import EventStream
from dgemma.interfaces import Matcher, Reader
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from dgemma.types import Delta, Event, Output, Request
from tests.support.engine_checks import check_scheduler


def tiny(seed: int = 0, *, context: int = 256, layers: int = 2) -> DiffusionGemma:
    """A random network whose step costs about a millisecond; every other layer is a full one."""
    model = DiffusionGemma(
        ModelConfig(
            vocab_size=64, hidden_size=16, intermediate_size=16, moe_intermediate_size=8,
            num_experts=2, top_k_experts=1, num_attention_heads=2,
            layer_types=("sliding_attention", "full_attention") * (layers // 2),
            sliding=AttentionShape(head_dim=8, num_key_value_heads=1, rope_theta=1e4),
            full=AttentionShape(head_dim=8, num_key_value_heads=1, rope_theta=1e4),
            sliding_window=8, max_position_embeddings=context, canvas_length=8,
        )
    )  # fmt: skip
    model.reset_parameters(seed)
    return model.eval().requires_grad_(False)


def engine(seed: int = 0, **sizes: Any) -> Engine:
    """An engine that no end id stops."""
    return Engine(tiny(seed, **sizes), end_ids=())


def request(seed: int = 1, *, mode: Any = "diffusion", **params: Any) -> Request:
    """Three steps a canvas, twenty tokens, frames and a trace."""
    values = {"max_tokens": 20} | params
    if mode == "diffusion":
        values = {"seed": seed, "max_steps": 3} | values
    own = SamplingParams(**values)
    return Request(
        token_ids=(2, 5, 6, 7), params=own, mode=mode, frames=True, trace=True, index=seed
    )


def run(events: Any) -> tuple[list[Event], Output]:
    """All events and the output, after checking that there is one end and it is the last."""
    seen = list(events)
    assert [event.type for event in seen].count("done") == 1
    assert seen[-1].type == "done" and seen[-1].output is not None
    assert all(event.output is None for event in seen[:-1])
    assert list(events) == [], "events came after the end"
    return seen, seen[-1].output


def last(stream: EventStream) -> Output:
    """The output of a stream that is run to its end."""
    output = [event.output for event in stream][-1]
    assert output is not None
    return output


def assert_same(output: Output, made: Generation) -> None:
    """All that both loops report is equal."""
    assert output.error is None
    assert output.token_ids == made.token_ids
    assert output.finish_reason == made.finish_reason
    assert output.usage.steps == sum(made.steps)
    assert output.usage.discarded_steps == made.discarded_steps
    assert output.usage.canvases == len(made.canvases)


def run_preempted(
    one: Engine, request: Request, when: Callable[[int, Live], object]
) -> tuple[list[Event], Output]:
    """All events and the output of a request that is preempted before the passes that `when` picks.

    Args:
        when: of the number of the pass and the sequence, which is running.
    """
    seq = one.prepare(request)
    one.add(seq)
    events: list[Event] = []
    for number in range(10_000):
        if seq in one.scheduler.running and when(number, seq):
            one.scheduler.preempt(seq)
        one.step()
        check_scheduler(one.scheduler)
        while (event := seq.events.take()) is not None:
            events.append(event)
        if events and events[-1].output is not None:
            return events, events[-1].output
    raise AssertionError("it does not end")


class EndingReader(Reader):
    """A reader without text that asks a function at every commit whether the answer is over."""

    def __init__(self, is_over: Callable[[tuple[int, ...]], bool]) -> None:
        super().__init__()
        self._is_over = is_over

    def push(self, ids: Sequence[int]) -> tuple[Delta, ...]:
        """See `Reader`."""
        if self._is_over(tuple(ids)):
            self.stopped_by = "the test"
        return super().push(ids)


@dataclass
class EndingFrontend:
    """A frontend that knows no text and gives each request of some an `EndingReader`."""

    is_over: Callable[[tuple[int, ...]], bool]
    chosen: Callable[[Request], bool] = lambda request: True
    found: tuple[Matcher, str] | None = None

    def common(self, request: Request) -> int:
        """See `TextSide`."""
        return 0

    def closed(self, request: Request) -> tuple[Request, bool]:
        """See `TextSide`."""
        return request, False

    def thought(self, request: Request) -> ThoughtIds | None:
        """See `TextSide`."""
        return None

    def reader(self, request: Request) -> Reader:
        """See `TextSide`."""
        return EndingReader(self.is_over) if self.chosen(request) else Reader()

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """See `TextSide`."""
        return self.found


def submit_kept(one: Engine, request: Request, matcher: Matcher, name: str) -> EventStream:
    """Submit a request whose answer this matcher keeps."""
    before, one.frontend = one.frontend, EndingFrontend(lambda ids: False, found=(matcher, name))
    try:
        return one.submit(request)
    finally:
        one.frontend = before
