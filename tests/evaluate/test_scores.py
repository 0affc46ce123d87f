"""What nano can do, at the count that the README's table has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dgemma.cli.evaluate import MODES
from dgemma.evaluate.run import Tally, evaluate
from dgemma.types import Mode
from tests.support.nano import nano

pytestmark = pytest.mark.model

BOTH: list[Mode] = ["diffusion", "autoregressive"]
HELD_OUT = 500


@pytest.fixture(scope="module")
def tallies() -> dict[tuple[str, Mode], Tally]:
    """Sudoku and JSON in both modes, on held-out examples."""
    return evaluate(nano(), ["sudoku", "json"], BOTH, HELD_OUT)


@pytest.mark.full
@pytest.mark.parametrize(("task", "least"), [("sudoku", 0.8), ("json", 0.9)])
def test_held_out(
    task: str, least: float, tallies: dict[tuple[str, Mode], Tally], record: Callable[..., Any]
) -> None:
    """A bundled model that is not the trained one, or a recipe that has got worse."""
    tally = tallies[task, "diffusion"]
    assert tally.count == HELD_OUT
    record(f"nano: held-out {task} exact, of {HELD_OUT}", tally.mean("exact"), f">= {least}")
    record(
        f"nano: the same, token by token ({task})", tallies[task, "autoregressive"].mean("exact")
    )
    assert tally.mean("exact") >= least


@pytest.mark.full
def test_passes_of_sudoku(
    tallies: dict[tuple[str, Mode], Tally], record: Callable[..., Any]
) -> None:
    """Denoising that takes as many model passes as writing token by token would be pointless."""
    passes = [tallies["sudoku", mode].steps / HELD_OUT for mode in BOTH]
    record("nano: passes a Sudoku, token by token / denoised", passes[1] / passes[0], ">= 5")
    assert passes[1] >= 5 * passes[0]


def test_exact_has_the_answers_of_decoding_token_by_token() -> None:
    """A mode of the table that is another one in truth, or counts its passes as the other does."""
    plain, exact = MODES[1:]
    found = evaluate(nano(), ["json"], [plain, exact], 8, report=lambda _: None)
    one, other = found["json", plain], found["json", exact]
    assert one.scores == other.scores and one.tokens == other.tokens
    assert other.steps < one.steps / 3
