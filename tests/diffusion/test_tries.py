"""Restarts and races: the rule, around a network whose belief is written down."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.diffusion.control import begin
from dgemma.diffusion.generate import generate
from dgemma.diffusion.sampler import start
from dgemma.diffusion.schedule import Schedule
from dgemma.kernels.controls import Controls
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl
from tests.support.fakes import Belief, ScriptedModel

SPEC = CanvasSpec(length=4, vocab_size=1000, context_length=40, end_ids=(1,))
PROMPT = [10, 11, 12]
END = 1


def told(first: int, entropy: float) -> Belief:
    """A belief in four ids, of which the first is given, and its mean entropy."""
    return [first, 21, 22, 23], [entropy] * 4


def wavering(start: int = 100, entropy: float = 9.0) -> list[Belief]:
    """Beliefs that never repeat."""
    return [told(start + k, entropy) for k in range(40)]


def sure(first: int) -> list[Belief]:
    """Two equal beliefs: the second has converged."""
    return [told(first, 0.0)] * 2


def run(
    beliefs: Sequence[Belief], control: CanvasControl | None = None, **params: int
) -> tuple[ScriptedModel, Generation]:
    """The loop on one canvas; the beliefs are told one after the other, whoever asks."""
    model = ScriptedModel(lambda canvas, step: beliefs[step])
    values = SamplingParams.from_dict({"seed": 7, "max_steps": 12, "max_tokens": 4} | params)
    made = generate(PROMPT, values, SPEC, model.encode, model.predict, model.read, control=control)
    return model, made


def attempts(made: Generation) -> list[int]:
    """Of each step."""
    return [step.attempt for step in made.trace]


def test_a_canvas_that_converges_in_time_is_not_begun_anew() -> None:
    """Nothing may change for what needs no restart."""
    free, plain = run(sure(20)), run(sure(20), restart_after=2)
    assert plain[1] == free[1] and plain[1].steps == (2,) and plain[1].discarded_steps == 0
    assert [call.ids for call in plain[0].predicted] == [call.ids for call in free[0].predicted]


def test_the_next_try_begins_with_other_noise_and_counts() -> None:
    """A restart from the same noise, or one whose cost is hidden."""
    model, made = run([*wavering()[:3], *sure(20)], restart_after=3)
    assert attempts(made) == [0, 0, 0, 1, 1] and made.steps == (5,) and made.discarded_steps == 3
    assert [step.step for step in made.trace] == [0, 1, 2, 0, 1]
    assert [step.reason for step in made.trace] == ["", "", "", "", "converged"]
    first, second = model.predicted[0], model.predicted[3]
    assert first.ids != second.ids and second.soft is None
    assert second.ids == start(7, 0, SPEC, attempt=1).ids.tolist()
    assert model.temperatures[3] == model.temperatures[0], "the schedule begins anew, too"
    assert made.token_ids[0] == 20


def test_after_the_last_try_the_best_goes_on() -> None:
    """The last try goes on instead, or the best begins again, or gets a whole schedule."""
    beliefs = [*wavering(100)[:2], *wavering(200, 3.0)[:2], *wavering(300)[:2], *wavering(400)]
    model, made = run(beliefs, restart_after=2, tries=3)
    assert attempts(made) == [0, 0, 1, 1, 2, 2] + [1] * 6
    assert [step.step for step in made.trace][6:] == [2, 3, 4, 5, 6, 7]
    assert made.steps == (12,) and made.discarded_steps == 4
    assert made.trace[-1].reason == "step_cap"
    assert model.predicted[6].soft == [201.0, 21.0, 22.0, 23.0], "where it was set aside"


def test_of_equals_the_earliest_is_the_best() -> None:
    """A tie that is broken by chance."""
    _, made = run([*wavering(100)[:4], *wavering(400)], restart_after=2, tries=2)
    assert attempts(made)[4] == 0


@pytest.mark.parametrize(("after", "tries", "steps"), [(5, 4, 20), (12, 2, 24), (4, 3, 12)])
def test_no_canvas_costs_more_than_all_its_tries(after: int, tries: int, steps: int) -> None:
    """With no steps left the best is committed as it is."""
    beliefs = wavering(100, 9.0)[:after] + wavering(200, 2.0)[:after] + wavering(300)
    _, made = run(beliefs, restart_after=after, tries=tries)
    assert made.steps == (steps,) and made.discarded_steps == steps - after
    assert made.token_ids == (200 + after - 1, 21, 22, 23)


def test_a_try_that_comes_to_the_same_ends_the_restarts() -> None:
    """Passes are spent on what the model says every time."""
    same = [told(100, 9.0), told(101, 9.0)]
    _, made = run([*same, *same, *wavering(400)], restart_after=2)
    assert attempts(made) == [0, 0, 1, 1] + [0] * 8
    assert made.discarded_steps == 2


@pytest.mark.parametrize("params", [{}, {"restart_after": 0}, {"restart_after": 13}])
def test_no_restart(params: dict[str, int]) -> None:
    """Off, or after more steps than a canvas may make."""
    _, made = run(wavering(), **params)
    assert attempts(made) == [0] * 12 and made.steps == (12,) and made.discarded_steps == 0


def test_an_empty_first_canvas_is_begun_anew() -> None:
    """An unlucky start ends the answer before its first word."""
    empty = sure(END)
    assert run(empty)[1].token_ids == ()
    _, made = run([*empty, *sure(20)], restart_after=8)
    assert made.token_ids == (20, 21, 22, 23) and made.discarded_steps == 2
    _, made = run(empty * 4, restart_after=8, tries=4)
    assert made.token_ids == () and made.finish_reason == "stop" and made.canvases[0][0] == END
    assert made.steps == (8,) and made.discarded_steps == 6, "all are empty, so it is"
    _, made = run([*empty, *wavering()], restart_after=3, tries=2)
    assert made.token_ids[0] == 109 and attempts(made)[-1] == 1, "an empty one is never the best"


def test_an_empty_later_canvas_ends_the_answer() -> None:
    """An answer that is over goes on."""
    model = ScriptedModel(lambda canvas, step: sure((20, END)[canvas])[step])
    params = SamplingParams(seed=7, restart_after=3)
    made = generate(PROMPT, params, SPEC, model.encode, model.predict, model.read)
    assert made.steps == (2, 2) and made.finish_reason == "stop"


def test_an_end_that_is_pinned_is_no_accident() -> None:
    """Every try would be empty."""
    control = CanvasControl(ids=(END,), pinned=(0,))
    _, made = run(sure(END), control, restart_after=8)
    assert made.steps == (2,)


def test_a_seeded_canvas_is_begun_where_it_began() -> None:
    """A restart counts steps that were never made, or is given what the first try was not."""
    control = CanvasControl(ids=(30, 31, 32, 33), strength=0.5)
    _, made = run([*wavering()[:2], *sure(20)], control, restart_after=2)
    assert [(step.attempt, step.step) for step in made.trace] == [(0, 6), (0, 7), (1, 6), (1, 7)]
    _, made = run(wavering(), control, restart_after=2, tries=2)
    assert made.steps == (6,), "a schedule of which the half is left"
    schedule = Schedule.of(SamplingParams())
    kept = [begin(7, 0, SPEC, schedule, Controls(), control, k).ids.tolist() for k in range(20)]
    assert len({tuple(ids) for ids in kept}) > 5, "other ids are kept each time"


def test_in_a_race_the_first_to_converge_counts() -> None:
    """Beliefs of three canvases in turn; a step of all is one step."""
    slow, quick = wavering(), [told(50, 5.0), told(51, 0.0), told(51, 0.001)]
    beliefs = [b for step in zip(slow, quick, wavering(600), strict=False) for b in step]
    _, made = run(beliefs, race=3)
    assert made.token_ids[0] == 51 and made.steps == (3,) and made.discarded_steps == 0
    assert attempts(made) == [1, 1, 1], "the trace shows the one that leads"


@pytest.mark.parametrize(("entropies", "winner"), [((2e-3, 1e-3, 1e-3), 1), ((0, 0, 0), 0)])
def test_of_several_that_converge_the_surest_counts(
    entropies: tuple[float, ...], winner: int
) -> None:
    """Which one is taken must not depend on the order in which they are looked at."""
    _, made = run([told(50 + k, entropies[k]) for _ in range(2) for k in range(3)], race=3)
    assert made.token_ids[0] == 50 + winner and attempts(made)[-1] == winner


def test_a_race_that_nobody_wins() -> None:
    """Without restarts the best of all is committed at the end."""
    beliefs = [told(100 * k + step, 9.0 - k) for step in range(12) for k in (1, 3, 2)]
    _, made = run(beliefs, race=3)
    assert made.steps == (12,) and made.token_ids[0] == 311
    assert made.trace[-1].reason == "step_cap" and made.trace[-1].attempt == 1


def test_the_next_race_has_the_next_attempts() -> None:
    """A second round that repeats the noise of the first."""
    first = [told(100 * k + step, 9.0) for step in range(2) for k in (1, 2)]
    second = [told(100 * k, (0.0, 9.0)[k - 3]) for step in range(2) for k in (3, 4)]
    model, made = run([*first, *second], race=2, restart_after=2)
    assert made.token_ids[0] == 300 and attempts(made) == [0, 0, 2, 2]
    assert made.steps == (4,) and made.discarded_steps == 2
    starts = [call.ids for call in model.predicted if call.soft is None]
    assert starts == [start(7, 0, SPEC, attempt=k).ids.tolist() for k in range(4)]


def test_the_best_of_a_race_goes_on_alone() -> None:
    """All of them go on, or the best of the last round alone is known."""
    first = [told(100 * k + step, (9.0, 3.0)[k - 1]) for step in range(2) for k in (1, 2)]
    second = [told(100 * k + step, 9.0) for step in range(2) for k in (3, 4)]
    model, made = run([*first, *second, *wavering(500)], race=2, restart_after=2, tries=2)
    assert attempts(made)[4:] == [1] * 8 and made.steps == (12,) and made.discarded_steps == 2
    assert len(model.predicted) == 4 * 2 + 8


def test_an_empty_canvas_does_not_win() -> None:
    """Of several noises one is nearly always empty, so a race would favour empty answers."""
    beliefs = [told(END, 0.0), told(50, 0.0), told(END, 0.0), told(51, 0.0), told(51, 0.0)]
    _, made = run(beliefs, race=2, restart_after=8)
    assert made.token_ids[0] == 51 and made.steps == (3,)
    assert run(beliefs, race=2)[1].token_ids == ()


def test_a_try_that_comes_to_an_earlier_answer_is_set_aside_at_once() -> None:
    """It would cost all of its steps to say the same again. One such try of four ends the restarts;
    the first canvas, whose entropy is the least, goes on."""
    beliefs = [*wavering(100)[:2], told(102, 1.0), told(300, 9.0), told(102, 9.0), *wavering(500)]
    _, made = run(beliefs, restart_after=3, tries=4)
    assert attempts(made) == [0, 0, 0, 1, 1] + [0] * 7
    assert made.steps == (12,) and made.discarded_steps == 2


def test_eight_tries_may_come_to_an_earlier_answer_once() -> None:
    """Hard puzzles need more tries than the first repetition leaves them."""
    again = [told(101, 9.0)] * 2
    beliefs = [*wavering(100)[:2], *again[:1], *sure(20)]
    _, made = run(beliefs, restart_after=2, tries=8)
    assert attempts(made) == [0, 0, 1, 2, 2] and made.token_ids[0] == 20
    _, made = run([*wavering(100)[:2], *again, *wavering(500)], restart_after=2, tries=8)
    assert attempts(made) == [0, 0, 1, 2] + [0] * 8
