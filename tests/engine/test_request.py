"""A request's bookkeeping without tensors, thoughts and their budget, traces and frames."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from dgemma.diffusion.learnt import ENOUGH, LearntLimits
from dgemma.engine.engine import Engine
from dgemma.engine.request import ModelLimits, resolve_request
from dgemma.engine.sequence import Sequence
from dgemma.errors import ContextOverflow, InvalidRequest
from dgemma.params import RELEASED, SamplingParams
from dgemma.request_parts import PromptContent, ThoughtIds, ToolUse
from dgemma.types import ENTROPY_PER_NAT, Output, Request
from tests.support.engines import EndingFrontend
from tests.support.nano import by_reference, nano, nano_engine, random_request

LIMITS = ModelLimits(context=40, canvas=8, vocab_size=100)
CLOSE = 101
"""Nano's `<channel|>`."""


def sequence(prompt: int = 4, **params: int) -> Sequence:
    """A request of that many prompt tokens, its prompt encoded."""
    request = Request(token_ids=(3,) * prompt, params=SamplingParams(seed=1, **params))
    state = Sequence(
        resolve_request(request, SamplingParams(), LIMITS, 9), LIMITS.canvas, LIMITS.context
    )
    state.encoded = prompt
    return state


@pytest.mark.process
def test_no_torch() -> None:
    """The request's life must be testable, and readable, without tensors."""
    code = (
        "import sys, dgemma.engine.request, dgemma.engine.sequence\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("ids", "params", "named"),
    [
        ((), {}, "empty"),
        ((100,), {}, "100"),
        ((-1,), {}, "-1"),
        ((3,), {"thinking_budget": 3}, "thinking_budget"),
        ((3,), {"t_max": 0.1}, "t_max"),
    ],
)
def test_refused(ids: tuple[int, ...], params: dict[str, float], named: str) -> None:
    """A request that cannot be honoured starts and fails late, without naming the cause."""
    request = Request(token_ids=ids, params=SamplingParams(**params))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=named):
        resolve_request(request, SamplingParams(), LIMITS, seed=1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "greedy"}, "mode must be one of diffusion, autoregressive, exact, score"),
        ({"tool_use": ToolUse(())}, "tool_use needs a chat"),
        ({"tool_use": ToolUse(()), "chat": True, "mode": "autoregressive"}, "tool_use has no mean"),
        (
            {"tool_use": ToolUse(()), "chat": True, "mode": "exact"},
            "tool_use has no meaning for the",
        ),
        ({"tool_use": ToolUse(()), "chat": True, "mode": "score"}, "tool_use has no meaning"),
        (
            {"params": SamplingParams(top_k=3), "mode": "exact"},
            "top_k has no meaning for the exact",
        ),
        (
            {"params": SamplingParams(stop=["x"]), "mode": "score"},
            "stop has no meaning for scoring",
        ),
        ({"params": SamplingParams(max_tokens=3), "mode": "score"}, "max_tokens has no meaning"),
        ({"thought": ThoughtIds(3, 100)}, "thought id 100 is outside"),
        ({"thought": ThoughtIds(-1, 3)}, "thought id -1 is outside"),
    ],
)
def test_refused_fields(fields: dict[str, Any], named: str) -> None:
    """Fields that contradict each other are dropped without a word, or fail in the middle."""
    request = Request(token_ids=(3, 4), **fields)
    with pytest.raises(InvalidRequest, match=named):
        resolve_request(request, SamplingParams(), LIMITS, seed=1)


@pytest.mark.parametrize(
    ("params", "seed"),
    [({}, 0), ({"temperature": 0}, 0), ({"temperature": 1}, 5), ({"seed": 7}, 7)],
)
def test_seed_of_the_exact_mode(params: dict[str, Any], seed: int) -> None:
    """A drawn answer needs a seed of its own; a greedy one that draws a seed costs other passes."""
    request = Request(token_ids=(3, 4), mode="exact", params=SamplingParams(**params))
    assert resolve_request(request, SamplingParams(), LIMITS, seed=5).params.seed == seed


@pytest.mark.parametrize(
    ("mode", "most"), [("diffusion", 32), ("autoregressive", 39), ("exact", 39)]
)
def test_longest_prompt(mode: str, most: int) -> None:
    """The check of the context is off by one, or forgets the canvas."""
    request = Request(token_ids=(3,) * most, mode=mode)  # type: ignore[arg-type]
    resolve_request(request, SamplingParams(), LIMITS, seed=1)
    with pytest.raises(ContextOverflow, match=f"at most {most}"):
        resolve_request(
            replace(request, token_ids=(3,) * (most + 1)), SamplingParams(), LIMITS, seed=1
        )


def test_defaults_fill_gaps_only() -> None:
    """The checkpoint's values win over the user's, or the released ones over the checkpoint's."""
    request = Request(token_ids=(3,), params=SamplingParams(max_steps=5))
    params = resolve_request(request, SamplingParams(max_steps=7, t_max=0.9), LIMITS, seed=1).params
    assert (params.max_steps, params.t_max, params.t_min, params.seed) == (5, 0.9, 0.4, 1)


def test_the_first_end_counts() -> None:
    """A cancel that comes after the end overwrites its reason."""
    state = sequence(max_tokens=4)
    state.commit([5] * 8, ended=False, steps=2)
    state.finish("cancelled")
    assert state.output is not None and state.output.finish_reason == "length"
    assert state.output.token_ids == (5,) * 4


@pytest.mark.parametrize(
    ("ids", "ended", "reason"),
    [
        (3, True, "stop"),
        (4, True, "stop"),
        (4, False, "length"),
        (5, True, "length"),
        (3, False, ""),
    ],
)
def test_end_id_and_limit(ids: int, ended: bool, reason: str) -> None:
    """At the limit an end id decides between "stop" and "length"."""
    state = sequence(max_tokens=4)
    state.commit([5] * ids, ended=ended, steps=1)
    assert (state.output.finish_reason if state.output else "") == reason


@pytest.mark.model
def test_thinking_budget() -> None:
    """A thought goes on past its budget, or the engine closes it elsewhere than the reference."""
    thought = ThoughtIds(open_id=100, close_id=CLOSE, is_open=True)
    engine = nano_engine(endless=True)
    size = engine.spec.length
    for budget, borders in ((0, 0), (1, 1), (size, 1), (size + 1, 2), (None, 9)):
        params = SamplingParams(seed=3, max_steps=2, max_tokens=3 * size, thinking_budget=budget)
        request = Request(token_ids=(2, 300, 301), params=params, thought=thought)
        events = list(engine.submit(request))
        output = events[-1].output
        assert output is not None
        made = by_reference(engine, request)
        assert output.token_ids == made.token_ids
        assert output.finish_reason == made.finish_reason
        spoken = [i for event in events if event.type == "commit" for i in event.ids]
        assert tuple(spoken) == output.token_ids
        if borders < 3 and CLOSE not in output.token_ids[: borders * size]:
            assert output.token_ids[borders * size] == CLOSE


@pytest.mark.model
def test_trace_and_frames() -> None:
    """Frames and trace tell different stories, or another one than the reference's."""
    for number in (0, 3, 6):
        engine = nano_engine(endless=True)
        request = replace(random_request(number), frames=True, trace=True)
        events = list(engine.submit(request))
        output = events[-1].output
        assert output is not None
        made = by_reference(engine, request)
        assert output.trace == made.trace
        frames = [event for event in events if event.type == "frame"]
        assert len(frames) == output.usage.steps == len(output.trace)
        for frame, step in zip(frames, output.trace, strict=True):
            assert (frame.canvas, frame.step) == (step.canvas, step.step)
            assert (frame.ids, frame.accepted) == (step.argmax, step.accepted)
            near = [min(255, round(ENTROPY_PER_NAT * nats)) for nats in step.entropy]
            assert all(abs(a - b) <= 1 for a, b in zip(frame.entropy, near, strict=True))
        commits = [event for event in events if event.type == "commit"]
        assert [event.canvas for event in commits] == list(range(len(commits)))
        assert [event.step for event in commits] == list(made.steps)
        assert {event.index for event in events} == {request.index}


@pytest.mark.model
def test_no_trace_unasked() -> None:
    """Every request pays for frames and traces that nobody reads."""
    events = list(nano_engine().submit(random_request(1)))
    assert {event.type for event in events} == {"commit", "done"}
    assert events[-1].output is not None and events[-1].output.trace == ()


@pytest.mark.model
def test_enough() -> None:
    """What ends an answer from outside (a stop string) is asked late, or its fault spreads."""
    engine = Engine(nano().model, end_ids=())
    request = Request(token_ids=(2,), params=SamplingParams(seed=1, max_steps=2, max_tokens=300))
    seen: list[tuple[int, ...]] = []
    engine.frontend = EndingFrontend(
        lambda ids: bool(seen.append(ids)) or len(seen) == 2, lambda asked: asked.index == 1
    )
    other = engine.submit(request)
    stream = engine.submit(replace(request, index=1))
    assert list(other)[-1].output is not None  # drives both, far past the end of the second
    output = list(stream)[-1].output
    assert output is not None and output.finish_reason == "stop"
    assert output.usage.canvases == len(seen) == 2

    def fault(ids: tuple[int, ...]) -> bool:
        raise InvalidRequest("no such id")

    engine.frontend = EndingFrontend(fault, lambda asked: asked.index == 1)
    other, stream = engine.submit(request), engine.submit(replace(request, index=1))
    output = list(stream)[-1].output
    assert output is not None and (output.finish_reason, output.error) == ("error", "no such id")
    last = list(other)[-1].output
    assert last is not None and last.finish_reason == "length"


@pytest.mark.parametrize(
    ("places", "named"),
    [
        (((-1, 2, "k"),), "start must be"),
        (((0, 0, "k"),), "length must be"),
        (((0, True, "k"),), "length must be"),
        (((0, 2, ""),), "key must be"),
        (((1, 3, "k"),), "past the 3 ids"),
        (((1, 2, "k"), (0, 1, "k")), "order"),
        (((0, 2, "k"), (1, 1, "k")), "none over another"),
    ],
)
def test_contents_that_cannot_be(places: tuple[Any, ...], named: str) -> None:
    """A key that holds for other tokens than those of its content."""
    with pytest.raises(InvalidRequest, match=named):
        Request(
            token_ids=(3, 4, 5),
            contents=tuple(PromptContent(start=s, length=n, key=k) for s, n, k in places),
        )


def test_contents_travel() -> None:
    """A request that cannot be sent to a process of its own."""
    content = PromptContent(start=1, length=2, key="k")
    request = Request(token_ids=(3, 4, 5), owner="a", contents=(content,))
    assert copy.deepcopy(request) == request and hash(request) == hash(replace(request))
    assert replace(request, contents=()) != request


def resolved(defaults: SamplingParams, limits: ModelLimits = LIMITS, **params: Any) -> Request:
    request = Request(token_ids=(3,), params=SamplingParams(**params))
    return resolve_request(request, defaults, limits, 9)


def test_auto_is_a_number_before_the_schedule_sees_it() -> None:
    """A word in the place of a number, or a limit that nobody has learnt."""
    limits = replace(LIMITS, learnt=LearntLimits())
    with pytest.raises(InvalidRequest, match="restart_after.*dgemma calibrate MODEL"):
        resolved(SamplingParams(), limits, restart_after="auto")
    with pytest.raises(InvalidRequest, match="quality.*dgemma calibrate MODEL"):
        resolved(SamplingParams(), limits, quality="careful")
    limits.learnt.take(7, -0.5)
    assert resolved(SamplingParams(), limits, restart_after="auto").params.restart_after == 7
    assert resolved(SamplingParams(restart_after="auto"), limits).params.restart_after == 7
    assert resolved(SamplingParams(), limits, quality="careful").params.quality == "careful"
    for own, found in ((5, 5), (0, 0)):
        made = resolved(SamplingParams(restart_after="auto"), limits, restart_after=own)
        assert made.params.restart_after == found


def test_restarts_of_the_checkpoint_give_way_to_early_text() -> None:
    """A checkpoint's own defaults make every request for early text an error."""
    defaults = SamplingParams(restart_after=8, tries=4, race=2, quality="careful", max_steps=5)
    params = resolved(defaults, stable_prefix=True).params
    assert (params.restart_after, params.race, params.quality) == (None, None, None)
    assert (params.stable_prefix, params.max_steps) == (True, 5)
    limits = replace(LIMITS, learnt=LearntLimits())
    limits.learnt.take(7, -0.5)
    assert resolved(defaults, limits).params.restart_after == 8
    assert resolved(defaults, limits, stable_prefix=False).params.race == 2


@pytest.mark.model
def test_the_engine_learns_and_says_what_it_took() -> None:
    """Steps that never reach the limit, a limit that no metric shows, or no way to repeat it."""
    engine = nano_engine()
    learnt = engine.limits.learnt
    learnt.take(None, None, learning=True)
    ids = tuple(nano().chat_ids([{"role": "user", "content": "What is your name?"}]))

    def ask(**params: Any) -> Output:
        return engine.submit(Request(token_ids=ids, params=SamplingParams(**params))).result()

    first = ask(seed=1, restart_after="auto")
    assert first.restart_after == 0 == engine.counters().restart_after
    free = learnt.counted
    assert free == 1
    learnt.learn(RELEASED, [9] * ENOUGH, SamplingParams())
    found = ask(seed=1, restart_after="auto")
    assert found.restart_after == 9 == engine.counters().restart_after
    assert learnt.counted == ENOUGH + 1  # one that may be begun anew teaches nothing
    assert ask(seed=1).token_ids == first.token_ids and ask(seed=1).restart_after == 0
    assert learnt.counted == ENOUGH + 3
