"""Temperature, acceptance and the stopping rule, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgemma.diffusion.schedule import Schedule, accept
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams


def accepted(entropy: list[float], bound: float) -> list[int]:
    """Positions accepted in a single canvas."""
    mask = accept(torch.tensor([entropy]), torch.tensor([bound], dtype=torch.float64))
    return mask[0].nonzero()[:, 0].tolist()


def test_released_temperatures() -> None:
    """0.8 first, 0.4083 last: counting from 47 to 0, or up, would start or end elsewhere."""
    schedule = Schedule.of(SamplingParams())
    assert schedule.temperature(0) == pytest.approx(0.8)
    assert schedule.temperature(47) == pytest.approx(0.4 + 0.4 / 48)
    assert schedule.temperature(24) == pytest.approx(0.6)


def test_fewer_steps_compress_the_schedule() -> None:
    """An engine that kept the 48-step schedule for 4 steps would end at 0.76, not at 0.5."""
    schedule = Schedule.of(SamplingParams(max_steps=4))
    assert [schedule.temperature(k) for k in range(4)] == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_temperature_is_computed_as_the_oracle_does() -> None:
    """Bit for bit: in fp64 arithmetic a third of the temperatures are off by one fp32 rounding."""
    schedule = Schedule.of(SamplingParams())
    for step in range(48):
        cur = torch.tensor(48 - step, dtype=torch.int32)
        expected = 0.4 + ((0.8 - 0.4) * (cur / 48))
        assert schedule.temperature(step) == expected.item()


def test_missing_fields_take_the_released_values() -> None:
    """`None` must never reach the arithmetic, and a clash with a default must be refused."""
    assert Schedule.of(SamplingParams(entropy_bound=0.5)) == Schedule(
        max_steps=48, entropy_bound=0.5, t_min=0.4, t_max=0.8,
        confidence_threshold=0.005, stability_threshold=1,
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="t_min"):
        Schedule.of(SamplingParams(t_min=0.9))


@pytest.mark.parametrize(
    ("entropy", "bound", "expected"),
    [
        ([3.0, 2.0, 5.0, 4.0], 0.1, [1]),  # the most certain one always
        ([0.25, 0.5, 0.125, 4.0], 0.375, [0, 1, 2]),  # sums before: 0, 0.125, 0.375
        ([0.25, 0.5, 0.125, 4.0], 0.37, [0, 2]),  # its own entropy does not count, the others' do
        ([0.25, 0.5, 0.125, 4.0], 0.875, [0, 1, 2, 3]),
        ([0.0, 0.0, 0.0, 9.0], 0.0, [0, 1, 2, 3]),  # nothing before it has any entropy
        ([1.0, 1.0, 1.0, 1.0], 1.0, [0, 1]),  # ties: the earlier position first
        ([1.0, 0.5, 0.5, 0.5], 0.0, [1]),
        ([math.nan, 2.0, 3.0, math.nan], 99.0, [1, 2]),
    ],
)
def test_acceptance_by_hand(entropy: list[float], bound: float, expected: list[int]) -> None:
    """`<` for `<=`, the own entropy counted in, descending order, or an unstable sort."""
    assert accepted(entropy, bound) == expected


@given(st.lists(st.floats(0, 6, width=32), min_size=1, max_size=30), st.floats(0, 20))
def test_acceptance_is_the_rule(entropy: list[float], bound: float) -> None:
    """The rule once more as a plain loop; the scatter back to positions is easy to get wrong."""
    before, expected = 0.0, []
    for position in sorted(range(len(entropy)), key=lambda p: entropy[p]):
        if (before + entropy[position]) - entropy[position] <= bound:
            expected.append(position)
        before += entropy[position]
    assert accepted(entropy, bound) == sorted(expected)


def test_rows_are_accepted_by_their_own_bounds() -> None:
    """A shared bound, or one sum through all rows, would mix requests."""
    entropy = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    mask = accept(entropy, torch.tensor([0.0, 0.15, 9.0]))
    assert mask.tolist() == [[True, False, False], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("stability", [0, 1, 2, 3])
def test_stability_k_means_k_repeats(stability: int) -> None:
    """Trap 5: read as k equal canvases, terse answers lose a token; 0 asks for no repeat at all."""
    schedule = Schedule.of(SamplingParams(stability_threshold=stability))
    verdicts = [schedule.converged(repeats, 0.0) for repeats in range(5)]
    assert verdicts == [repeats >= stability for repeats in range(5)]


def test_confidence_is_strictly_below() -> None:
    """`<=` would stop a model that is certain of everything under a threshold of 0; NaN never."""
    schedule = Schedule.of(SamplingParams(confidence_threshold=0.25))
    assert [schedule.converged(1, mean) for mean in (0.24, 0.25, math.nan, math.inf)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert not Schedule.of(SamplingParams(confidence_threshold=0)).converged(9, 0.0)


def test_temperature_scales_the_schedule() -> None:
    """A factor that replaces the schedule, or a zero that divides the logits."""
    plain, hot = Schedule.of(SamplingParams()), Schedule.of(SamplingParams(temperature=1.5))
    for step in (0, 20, 47):
        assert hot.temperature(step) == pytest.approx(1.5 * plain.temperature(step))
    cold = Schedule.of(SamplingParams(temperature=0))
    assert cold.greedy and not plain.greedy and cold.temperature(3) == plain.temperature(3)
