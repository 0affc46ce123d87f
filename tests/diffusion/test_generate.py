"""The reference loop around a network whose belief is written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.diffusion.generate import generate
from dgemma.errors import ContextOverflow, EngineError, InvalidRequest
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from tests.support.fakes import Belief, ScriptedModel

SPEC = CanvasSpec(length=4, vocab_size=1000, context_length=40, end_ids=(1, 106, 50))
PROMPT = [10, 11, 12]
SURE = [0.0] * 4


def run(
    script: Callable[[int, int], Belief],
    spec: CanvasSpec = SPEC,
    thought: ThoughtIds | None = None,
    prompt: list[int] = PROMPT,
    **params: int | float,
) -> tuple[ScriptedModel, Generation]:
    """The loop on a scripted network; three steps a canvas at most."""
    model = ScriptedModel(script)
    values = SamplingParams.from_dict({"seed": 0, "max_steps": 3} | params)
    return model, generate(prompt, values, spec, model.encode, model.predict, model.read, thought)


def counting(canvas: int, step: int) -> Belief:
    """Canvas 0 is 20 21 22 23, canvas 1 is 30 31 32 33 and so on; sure from the start."""
    return [20 + 10 * canvas + k + 100 * (canvas > 2) for k in range(4)], SURE


def ending(last: int) -> Callable[[int, int], Belief]:
    """The same with an end id in the middle of canvas `last`."""

    def script(canvas: int, step: int) -> Belief:
        ids, entropy = counting(canvas, step)
        return ([ids[0], ids[1], 106, 77] if canvas == last else ids), entropy

    return script


def test_canvases_until_an_end_id() -> None:
    """The argmax is committed, cut at the end id; each canvas but the last is encoded as it is."""
    model, made = run(ending(2))
    assert made.token_ids == (20, 21, 22, 23, 30, 31, 32, 33, 40, 41)
    assert made.canvases == ((20, 21, 22, 23), (30, 31, 32, 33), (40, 41, 106, 0))
    assert made.finish_reason == "stop" and made.steps == (2, 2, 2)
    assert model.encoded == [PROMPT, [20, 21, 22, 23], [30, 31, 32, 33]]


def test_belief_is_none_at_the_first_step_of_every_canvas() -> None:
    """Trap 2: the signal must be exactly zero there, not the belief of the canvas before.

    Seen to fail with the soft embedding carried over to the next canvas. Later steps get the
    belief of the step before.
    """
    model, made = run(ending(2), stability_threshold=2, max_steps=4)
    for canvas in range(3):
        beliefs = [call.soft for call in model.predicted if call.canvas == canvas]
        assert beliefs[0] is None
        assert beliefs[1:] == [[float(i) for i in ending(2)(canvas, 0)[0]]] * 2
    # Trap 5 in the loop: threshold 2 means three equal canvases.
    assert made.steps == (3, 3, 3)


def test_every_canvas_starts_over() -> None:
    """Fresh noise and the highest temperature again; a counter that runs on would cool down."""
    model, made = run(lambda canvas, step: (counting(canvas, 0)[0], [9.0] * 4), max_tokens=12)
    assert made.steps == (3, 3, 3)
    assert model.temperatures == pytest.approx([0.8, 0.4 + 0.4 * 2 / 3, 0.4 + 0.4 / 3] * 3)
    starts = [next(c.ids for c in model.predicted if c.canvas == k) for k in range(3)]
    assert len({tuple(ids) for ids in starts}) == 3
    assert [t.reason for t in made.trace] == ["", "", "step_cap"] * 3


@pytest.mark.parametrize(
    ("max_tokens", "tokens", "canvases", "reason"),
    [
        (1, (20,), 1, "length"),
        (4, (20, 21, 22, 23), 1, "length"),
        (5, (20, 21, 22, 23, 30), 2, "length"),
        (6, (20, 21, 22, 23, 30, 31), 2, "stop"),  # the end id itself takes no room
        (7, (20, 21, 22, 23, 30, 31), 2, "stop"),
    ],
)
def test_max_tokens(max_tokens: int, tokens: tuple[int, ...], canvases: int, reason: str) -> None:
    """As many canvases as are needed and no more; the cut comes after, an end id not counted."""
    _, made = run(ending(1), max_tokens=max_tokens)
    assert made.token_ids == tokens and len(made.canvases) == canvases
    assert made.finish_reason == reason


def test_the_context_ends_the_answer() -> None:
    """3 + 4k <= 40: nine canvases fit, a tenth would stand beyond the last position."""
    _, made = run(counting)
    assert len(made.canvases) == 9 and made.finish_reason == "length"


def test_prompts_that_cannot_be_answered() -> None:
    """A clear refusal before any work, with the length that would fit."""
    with pytest.raises(InvalidRequest, match="empty"):
        run(counting, prompt=[])
    with pytest.raises(ContextOverflow, match="at most 36"):
        run(counting, prompt=[5] * 37)
    _, made = run(counting, prompt=[5] * 36)
    assert len(made.canvases) == 1


def test_numbers_that_are_not_finite_end_the_request() -> None:
    """48 steps of NaN would come out as an answer of id 0."""
    with pytest.raises(EngineError, match="canvas 1, step 1"):
        run(lambda canvas, step: ([5] * 4, [math.nan if canvas == step == 1 else 0.0] * 4))


def test_suppression_reaches_the_vocabulary() -> None:
    """Trap 8: noise and samples must both know; seen to fail with empty `Controls`."""
    model, _ = run(ending(0), replace(SPEC, suppress_ids=(7, 9)))
    assert {c.suppress_ids for c in model.controls} == {(7, 9)}


def test_the_thought_is_closed_at_the_border_past_its_budget() -> None:
    """The close marker belongs to the answer and to the context, and the next canvas follows it."""
    opened, closed = 100, 101

    def script(canvas: int, step: int) -> Belief:
        return ([opened, 21, 22, 23] if canvas == 0 else ending(2)(canvas, step)[0]), SURE

    thought = ThoughtIds(opened, closed)
    model, made = run(script, thought=thought, thinking_budget=3)
    assert model.encoded == [PROMPT, [opened, 21, 22, 23, closed], [30, 31, 32, 33]]
    assert made.token_ids == (opened, 21, 22, 23, closed, 30, 31, 32, 33, 40, 41)
    model, made = run(script, thought=thought, thinking_budget=4)
    assert model.encoded == [PROMPT, [opened, 21, 22, 23], [30, 31, 32, 33, closed]]
    model, made = run(script, thought=thought)
    assert closed not in made.token_ids


def test_a_budget_of_zero_closes_the_prompts_own_thought() -> None:
    """The border before the first canvas counts too."""
    model, made = run(ending(0), thought=ThoughtIds(100, 101, is_open=True), thinking_budget=0)
    assert model.encoded == [[*PROMPT, 101]] and made.token_ids == (101, 20, 21)


def test_trace_shows_what_the_network_read() -> None:
    """One step off, the trace would show the canvas after its own argmax."""
    model, made = run(ending(1))
    assert [list(t.ids) for t in made.trace] == [call.ids for call in model.predicted]
    assert [(t.canvas, t.step) for t in made.trace] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [t.reason for t in made.trace] == ["", "converged"] * 2
