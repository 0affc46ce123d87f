"""The settled beginning of a canvas: what is pinned, when, and what that does to the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec, states
from dgemma.diffusion.sampler import finish, start, step
from dgemma.diffusion.schedule import Schedule
from dgemma.diffusion.stable import pin_prefix
from dgemma.params import SamplingParams
from tests.support.fakes import head_output

END = 1
SPEC = CanvasSpec(length=5, vocab_size=1000, context_length=64, end_ids=(END, 106))
SCHEDULE = Schedule.of(SamplingParams(stable_prefix=True))
SURE, UNSURE = 0.001, 2.0


def embed(ids: Tensor) -> Tensor:
    """A table whose rows no reading of the tests has."""
    return 1000.0 + ids[:, None]


def run(
    steps: Sequence[tuple[Sequence[int], Sequence[float]]], schedule: Schedule = SCHEDULE,
    canvas: Canvas | None = None,
) -> list[Canvas]:  # fmt: skip
    """The canvas after each step, given the argmax and the entropy of each."""
    out = [canvas or start(3, 0, SPEC)]
    for argmax, entropy in steps:
        after = step(out[-1], head_output(argmax, entropy), schedule, SPEC)
        out.append(pin_prefix(out[-1], after, schedule, SPEC, embed))
    return out[1:]


def pins(canvas: Canvas) -> list[int]:
    """Pinned ids, -1 where free."""
    held = canvas.controls.pinned
    return [-1] * len(canvas.ids) if held is None else held.tolist()


def test_the_stop_rule_holds_for_each_leading_position() -> None:
    """Text told after one look, or while it is doubted, or that stands behind what may change."""
    entropy = [SURE, SURE, UNSURE, SURE, SURE]
    first, second, third = run([([5, 6, 7, 8, 9], entropy), ([5, 6, 7, 8, 9], entropy),
                                ([5, 6, 4, 8, 9], [0.0, 0.0, SURE, SURE, SURE])])  # fmt: skip
    assert (first.stable, pins(first)) == (0, [-1] * 5)
    assert (second.stable, pins(second)) == (2, [5, 6, -1, -1, -1])
    assert third.stable == 2, "a position that has just changed"


@pytest.mark.parametrize("threshold", [0, 1, 3])
def test_as_many_equal_steps_as_the_threshold(threshold: int) -> None:
    """A count that is off by one, or goes on over a change."""
    schedule = replace(SCHEDULE, stability_threshold=threshold, confidence_threshold=0.1)
    doubt = [SURE, UNSURE, UNSURE, UNSURE, UNSURE]
    told = run([([4, 6, 7, 8, k], doubt) for k in range(10, 12)]
               + [([5, 6, 7, 8, k], doubt) for k in range(20, 26)],
               replace(schedule, confidence_threshold=0.1))  # fmt: skip
    counts = [canvas.stable for canvas in told]
    assert counts.index(1) == (threshold if threshold < 2 else 2 + threshold)


def test_a_pin_is_what_a_callers_own_is() -> None:
    """A pinned position that is drawn again, doubted by the next step, or counted by the stop."""
    entropy = [SURE, UNSURE, UNSURE, UNSURE, UNSURE]
    _, canvas = run([([5, 6, 7, 8, 9], entropy)] * 2)
    assert canvas.ids[0] == 5 and canvas.soft is not None
    assert canvas.soft[:, 0].tolist() == [1005, 6, 7, 8, 9]
    assert states(canvas)[0] == 2 and 2 not in states(canvas)[1:]
    after = step(canvas, head_output([5, 6, 7, 8, 9], [0.0, *[4.0] * 4]), SCHEDULE, SPEC)
    assert after.accepted is not None and after.accepted.tolist() == [False, True] + [False] * 3
    assert after.mean_entropy == 4.0 and after.ids[0] == 5


def test_nothing_counts_behind_an_end() -> None:
    """What stands behind an end id told as text, or a canvas denoised on for its sake."""
    entropy = [SURE, SURE, SURE, SURE, UNSURE]
    _, canvas = run([([5, END, 7, 8, 9], entropy)] * 2)
    assert (canvas.stable, pins(canvas)) == (2, [5, END, -1, -1, -1])
    assert canvas.reason == "converged"
    assert finish(canvas, SPEC).token_ids == (5,)
    _, canvas = run([([END, END, 7, 8, 9], [UNSURE, *entropy[1:]])] * 2)
    assert canvas.stable == 0 and not canvas.reason


def test_a_canvas_that_is_settled_as_a_whole_is_finished() -> None:
    """One more step for a canvas where nothing is left to decide.

    Its entropies are below the threshold one by one, so is their mean; what its own rule lacks is
    five equal argmaxes at once.
    """
    moving = [([5, 6, 7, 8, k], [SURE] * 5) for k in (9, 10, 10)]
    canvas = run(moving[:2])[-1]
    assert (canvas.stable, canvas.reason) == (4, "")
    canvas = run(moving)[-1]
    assert canvas.reason == "converged" and finish(canvas, SPEC).token_ids == (5, 6, 7, 8, 10)


def test_a_callers_pins_are_settled_from_the_start() -> None:
    """A pin of the caller's that stops the prefix, or is lost; one behind the prefix told."""
    canvas = start(3, 0, SPEC)
    given = torch.tensor([5, -1, 7, -1, 9])
    canvas = replace(canvas, controls=replace(canvas.controls, pinned=given))
    entropy = [0.0, UNSURE, 0.0, UNSURE, 0.0]
    first, second, third = run(
        [([5, 6, 7, 8, 9], entropy)] * 2 + [([5, 6, 7, 8, 9], [0.0, SURE, 0.0, UNSURE, 0.0])],
        canvas=canvas,
    )
    assert [c.stable for c in (first, second, third)] == [1, 1, 3]
    assert pins(second) == given.tolist() and pins(third) == [5, 6, 7, -1, 9]


def test_off_changes_nothing() -> None:
    """A schedule that does not ask for it pays for it, or is steered by it."""
    before = start(3, 0, SPEC)
    schedule = Schedule.of(SamplingParams())
    after = step(before, head_output([5, 6, 7, 8, 9], [SURE] * 5), schedule, SPEC)
    assert pin_prefix(before, after, schedule, SPEC, embed) is after
