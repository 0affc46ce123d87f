"""Whether a figure tells right answers from wrong ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.errors import InvalidRequest
from dgemma.evaluate.verdict import (
    SIGNS,
    Judged,
    as_markdown,
    auroc,
    encoder_logprobs,
    judge,
    signs_of,
)
from dgemma.types import Output, TokenScore, Usage, Verdict
from tests.support.nano import nano

FULL = 1000


def test_auroc() -> None:
    """Catches a sign that is turned round, ties that count for one side, and a wrong scale."""
    assert auroc([3, 2, 1], [True, True, False]) == 1.0
    assert auroc([1, 2, 3], [True, True, False]) == 0.0
    assert auroc([1, 1, 1, 1], [True, False, True, False]) == 0.5
    assert auroc([1, 2, 2, 3], [False, True, False, True]) == 3.5 / 4
    assert auroc([1, 2], [True, True]) is auroc([], []) is None
    with pytest.raises(InvalidRequest, match="one for each"):
        auroc([1.0], [])


def test_auroc_is_the_share_of_pairs() -> None:
    """Catches a shortcut that miscounts: all pairs are counted one by one here."""
    draw = random.Random(1)
    values = [draw.randrange(12) / 4 for _ in range(80)]
    right = [draw.random() < 0.7 for _ in values]
    pairs = [
        (a > b) + (a == b) / 2
        for a, good in zip(values, right, strict=True) if good
        for b, bad in zip(values, right, strict=True) if not bad
    ]  # fmt: skip
    assert auroc(values, right) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_figures_of_an_answer() -> None:
    """Catches a figure in the wrong column, or one whose greater value is the worse."""
    scores = (TokenScore(token_id=1, logprob=0.0, entropy=0.5),
              TokenScore(token_id=2, logprob=0.0, entropy=1.5))  # fmt: skip
    output = Output(scores=scores, usage=Usage(steps=7))
    assert signs_of(output, (-1.0, -3.0)) == (-3.7, -2.0, -3.0, -1.0, -7.0)
    assert signs_of(Output(), ()) == (0.0, 0.0, 0.0, 0.0, 0.0)
    judged = Judged(
        "json", [True, False], [(-1.0, -2.0, -3.0, -4.0, 0.0), (-2.0, -1.0, -3.0, -9.0, 0.0)]
    )
    assert judged.areas() == [1.0, 0.0, 0.5, 1.0, 0.5]
    assert "| json | 2 | 50.0% | 1.000 | 0.000 | 0.500 | 1.000 | 0.500 |" in as_markdown([judged])
    assert "| - | - | - | - | - |" in as_markdown([Judged("json", [True], [(0.0,) * 5])])


@pytest.mark.model
def test_the_encoder_reads_the_answer() -> None:
    """Catches a reading that scores the prompt, or skips a given verdict, or an empty answer."""
    llm = nano()
    output = llm.chat([{"role": "user", "content": "What is your name?"}], seed=0)
    given = Output(verdict=Verdict(logprobs=(-1.0,)), prompt_ids=(2,))
    found, own, none = encoder_logprobs(llm, [output, given, Output(prompt_ids=(2,))])
    assert own == (-1.0,) and none == ()
    assert len(found) == len(output.token_ids)
    greedy = llm.autoregress([{"role": "user", "content": "What is your name?"}])
    assert greedy.token_ids == output.token_ids and min(found) > -0.7


@pytest.mark.model
def test_judge_counts_each_example_once() -> None:
    """Catches examples whose figures and grades come from different answers."""
    lines: list[str] = []
    made = judge(nano(), ["labels", "sudoku-hard"], 3, report=lines.append)
    assert [len(one.right) for one in made] == [len(one.signs) for one in made] == [3, 3]
    assert len(lines) == 2 and all(row[-1] <= -1 for one in made for row in one.signs)


@pytest.mark.model
@pytest.mark.full
def test_a_verdict_parts_right_from_wrong(record: Callable[..., Any]) -> None:
    """Catches a reading of other tokens, or a model whose figures say nothing.

    The encoder's own figures are told and not asserted: it cannot solve a Sudoku from left to
    right, and finds right ones unlikely, too. With the steps they are good on both.
    """
    for one in judge(nano(), ["json", "sudoku"], FULL):
        areas = dict(zip(SIGNS, one.areas(), strict=True))
        for sign, area in areas.items():
            limit = ">= 0.98" if sign == SIGNS[0] else ""
            record(f"nano: {FULL} {one.task}, AUROC of the {sign}", area or 0.0, limit)
        assert (areas[SIGNS[0]] or 0.0) >= 0.98
