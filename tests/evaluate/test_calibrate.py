"""The limits that are fitted for a checkpoint."""

from __future__ import annotations

import pytest

from dgemma.compose.calibration import Calibration
from dgemma.errors import InvalidRequest
from dgemma.evaluate import calibrate
from dgemma.evaluate.calibrate import (
    FEWEST,
    SEED,
    Runs,
    answer,
    as_markdown,
    fit,
    from_prompts,
    from_task,
    least_canvas,
    least_logprob,
)
from dgemma.evaluate.run import HELD_OUT_SEED
from dgemma.tasks import make_example
from tests.support.nano import nano


def test_no_more_than_one_right_answer_in_twenty_is_below() -> None:
    """Catches a bound that begins good answers anew, and one that is lower than it need be."""
    for count in (1, 19, 20, 40, 100, 101):
        values = [-0.01 * k for k in range(1, count + 1)]
        bound = least_logprob(values)
        assert sum(value < bound for value in values) == count // 20
        assert bound in values
    assert least_logprob([-1.0, -1.0, -1.0]) == -1.0


def test_the_least_likely_canvas_counts() -> None:
    """Catches a poor canvas that hides among good ones, and an end id that belongs to none."""
    assert least_canvas([-1.0, -3.0, -4.0, -6.0], [2, 1]) == -5.0
    assert least_canvas([-1.0, -3.0, 0.0], [2]) == pytest.approx(-4 / 3)
    assert least_canvas([-7.0], [0]) == -7.0  # the end alone
    assert least_canvas([], [0]) == least_canvas([], []) == 0.0


def test_the_limits_are_those_of_all_runs() -> None:
    """Catches a percentile of unfinished canvases, and a bound that one task pays for another."""
    easy = Runs("a", steps=[3] * 94, canvases=95, logprobs=[-0.1] * 40, graded=40)
    hard = Runs("b", steps=[9] + [20] * 5, canvases=30, logprobs=[-2.0] * FEWEST, graded=30)
    few = Runs("c", steps=[], canvases=1, logprobs=[-50.0], graded=1)
    found = fit([easy, hard, few], Calibration({"choice": 2.0}, 40))
    assert found == Calibration({"choice": 2.0}, 9, -2.0)
    assert fit([easy]) == Calibration({}, 3, -0.1)
    assert fit([Runs("a", steps=[3] * 94)]) == Calibration({}, 3, None)
    with pytest.raises(InvalidRequest, match=f"19 canvases .* needs {FEWEST}"):
        fit([Runs("a", steps=[3] * 19)])
    table = as_markdown([easy, hard, Runs("d")]).splitlines()
    assert table[2] == "| a | 95 | 98.9% | 3, 3 | 100.0% | -0.1000 |"
    assert table[3] == "| b | 30 | 20.0% | 20, 20 | 66.7% | -2.0000 |"
    assert table[4] == "| d | 0 | 0.0% | - | - | - |"


@pytest.mark.model
def test_no_example_is_in_the_evaluation() -> None:
    """Catches limits that were fitted on the answers which they are measured on."""
    assert SEED != HELD_OUT_SEED
    llm = nano()
    fitted = [one.request.token_ids for one in from_task(llm, "sudoku", 4)]
    for index in range(4):
        messages = make_example("sudoku", "heldout", HELD_OUT_SEED, index).messages
        assert tuple(llm.chat_ids(list(messages))) not in fitted


@pytest.mark.model
def test_answers_are_counted_and_graded() -> None:
    """Catches canvases that are begun anew while their steps are counted, and lost grades."""
    llm = nano()
    rows = [
        {"messages": [{"role": "user", "content": "What is your name?"}],
         "answer": "I am nano, a small DiffusionGemma.\n"},
        {"messages": [{"role": "user", "content": "What is your name?"}], "answer": "Bob"},
        {"messages": [{"role": "user", "content": "What is your name?"}]},
    ]  # fmt: skip
    asked = from_prompts(llm, rows)
    params = asked[0].request.params
    assert (params.restart_after, params.race, asked[0].request.chat) == (0, 1, True)
    told: list[tuple[str, int, int]] = []
    runs = answer(llm, "mine", asked, lambda *what: told.append(what))
    assert (runs.canvases, len(runs.steps), runs.graded, len(runs.logprobs)) == (3, 3, 2, 1)
    assert min(runs.steps) >= 2 and -0.5 < runs.logprobs[0] <= 0 and told == [("mine", 3, 3)]


@pytest.mark.model
@pytest.mark.parametrize("row", [
    [], "x", {}, {"prompt": 1}, {"messages": "x"}, {"prompt": "a", "messages": []},
    {"prompt": "a", "answer": 1}, {"prompt": "a", "answers": "b"}, None,
])  # fmt: skip
def test_bad_prompts_are_refused(row: object) -> None:
    """Catches a line of another form that is passed over, or ends in a traceback."""
    with pytest.raises(InvalidRequest, match="prompt 2 must be an object"):
        from_prompts(nano(), [{"prompt": "a"}, row])
    with pytest.raises(InvalidRequest):
        calibrate.from_prompts(nano(), [{"messages": []}])
