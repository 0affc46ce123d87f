"""Limits that a model learns from its answers."""

from __future__ import annotations

import math
import random

import pytest

from dgemma.diffusion.learnt import ENOUGH, MEMORY, MOST_STEPS, UNLIMITED, LearntLimits, StepCounts
from dgemma.errors import InvalidRequest
from dgemma.params import RELEASED, SamplingParams

FREE = RELEASED.merged(SamplingParams(restart_after=0))


def learning(calibrated: int | None = None) -> LearntLimits:
    limits = LearntLimits()
    limits.take(calibrated, None, learning=True)
    return limits


MIXED = [k * k % 47 for k in range(333)]


@pytest.mark.parametrize(
    "steps", [[4], [1, 2], [3] * 95 + [9] * 5, [3] * 94 + [9] * 6, [max(1, k) for k in MIXED]]
)
def test_the_limit_is_the_95th_percentile(steps: list[int]) -> None:
    """Catches a limit one step off, at which a canvas in twenty more is begun anew."""
    limit = StepCounts(steps).limit()
    assert sum(one <= limit for one in steps) >= 0.95 * len(steps)
    assert sum(one < limit for one in steps) < 0.95 * len(steps)
    assert sorted(steps)[math.ceil(0.95 * len(steps)) - 1] == limit


def test_the_past_fades_and_memory_is_bounded() -> None:
    """Catches a limit that a long life has frozen, and counts that grow with it."""
    counts = StepCounts([3] * (10 * MEMORY))
    assert counts.total < MEMORY and counts.limit() == 3
    for _ in range(MEMORY):
        counts.add(20)
    assert counts.limit() == 20 and counts.total < MEMORY
    counts = StepCounts([10**9])
    assert counts.limit() == MOST_STEPS


def test_without_a_calibration_there_is_no_limit() -> None:
    """Catches "auto" that silently means never, and an error without its remedy."""
    limits = LearntLimits()
    assert limits.restart_after is None
    for call in (limits.resolve, limits.check_careful):
        with pytest.raises(InvalidRequest, match="make one with: dgemma calibrate MODEL"):
            call()
    limits.take(7, -0.5)
    limits.check_careful()
    assert [limits.resolve() for _ in range(2 * UNLIMITED)] == [7] * 2 * UNLIMITED


def test_only_a_learner_learns() -> None:
    """Catches a limit that moves although nobody asked for it."""
    limits = LearntLimits()
    limits.take(7, None)
    limits.learn(FREE, [20] * 1000, SamplingParams())
    assert limits.restart_after == 7


def test_a_server_learns() -> None:
    """Catches a limit of too few canvases, and one that is never taken."""
    limits = learning()
    assert (limits.restart_after, limits.resolve()) == (0, 0)
    limits.learn(FREE, [5] * (ENOUGH - 1), SamplingParams())
    assert limits.restart_after == 0
    limits.learn(FREE, [5], SamplingParams())
    assert limits.restart_after == 5
    assert learning(7).restart_after == 7


@pytest.mark.parametrize("params", [
    {"restart_after": 3}, {"race": 4}, {"quality": "careful"}, {"max_steps": 12},
    {"confidence_threshold": 100.0}, {"stability_threshold": 0}, {"entropy_bound": 1e6},
    {"temperature": 0.0}, {"t_max": 0.5}, {"t_min": 0.5}, {"ignore_tail": True},
])  # fmt: skip
def test_canvases_that_were_cut_short_teach_nothing(params: dict[str, int]) -> None:
    """Catches a limit that falls and falls, since it sees only what stayed below it; and one that
    a stranger sets to a single step, by a request that calls everything converged."""
    limits = learning()
    limits.learn(SamplingParams.of(FREE, **params), [2] * 100, SamplingParams())  # type: ignore[arg-type]
    assert limits.restart_after == 0
    limits.learn(SamplingParams.of(FREE, max_steps=12), [2] * 100, SamplingParams(max_steps=12))
    assert limits.restart_after == 2


def test_one_in_some_has_no_limit() -> None:
    """Catches a server where everybody says "auto", so that there is nothing to learn from."""
    limits = learning(7)
    found = [limits.resolve() for _ in range(4 * UNLIMITED)]
    assert found.count(0) == 4 and set(found) == {0, 7} and found[0] == 7


def test_the_limit_finds_its_place() -> None:
    """Catches a feedback of the limit on itself: all requests say "auto" and are begun anew at it.

    Steps are geometric, with 95 % of them up to 10.
    """
    draw, limits = random.Random(2), learning()
    rate = 1 - 0.05**0.1
    seen = []
    for _ in range(60 * UNLIMITED * 10):
        after = limits.resolve()
        steps = 1 + int(math.log(1 - draw.random()) / math.log(1 - rate))
        limits.learn(SamplingParams.of(FREE, restart_after=after), [steps], SamplingParams())
        seen.append(limits.restart_after)
    assert all(8 <= one <= 13 for one in seen[-2000:] if one is not None)
