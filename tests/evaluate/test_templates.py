"""What nano answers under the template released with DiffusionGemma, which leaves the empty thought
to the model, beside its own, which writes it: with the thought closed, and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

import pytest

from dgemma.compose.questions import Choice
from dgemma.evaluate.canvas import TOGETHER, schema_of
from dgemma.evaluate.paired import difference
from dgemma.evaluate.run import HELD_OUT_SEED
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.tasks import Example, grade, make_example
from tests.support.nano import nano
from tests.support.templates import nano_under, unclosed
from tests.support.tokenizers import diffusion_source

__all__ = ["diffusion_source"]

pytestmark = pytest.mark.model

WIDTH = 32
"""Tokens of a canvas for a short answer."""
POINTS = 0.02
"""Least of the interval of the paired difference, as a share."""


def _example(task: str, index: int) -> Example:
    return make_example(task, "heldout", HELD_OUT_SEED, index)


def decided(llm: LLM, index: int) -> float:
    """A decision is right."""
    example = _example("labels", index)
    choices: Any = example.meta["choices"]
    decision = llm.decide(example.messages, [Choice("label", "", choices)], seed=index)
    return float(decision.answers[0].choice == example.answer)


def chosen(llm: LLM, index: int) -> float:
    """One of the choices is written, and the right one."""
    example = _example("labels", index)
    choices: Any = example.meta["choices"]
    params = SamplingParams(seed=index, choices=choices, canvas_length=WIDTH)
    return float(llm.chat(example.messages, params).text == example.answer)


def structured(llm: LLM, index: int) -> float:
    """An answer under its schema is right."""
    example = _example("json", index)
    schema = schema_of(json.loads(example.answer))
    params = SamplingParams(seed=index, json_schema=schema, canvas_length="auto", max_tokens=96)
    return grade(example, llm.chat(example.messages, params).text)["exact"]


def filled(llm: LLM, index: int) -> float:
    """A gap is filled with its own text."""
    example = _example("gaps", index)
    prefix, gap, suffix = (str(example.meta[part]) for part in ("prefix", "gap", "suffix"))
    done = llm.infill(prefix, suffix, seed=index, max_hole=8, canvas_length=WIDTH)
    return float(done.holes[0].text == gap)


def right(llm: LLM, task: Callable[[LLM, int], float], count: int) -> list[float]:
    """Which of the first examples an LLM gets right."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda index: task(llm, index), range(count)))


@pytest.mark.fault("P C1", "P C2", "P C4", "P C5")
@pytest.mark.parametrize("task", [decided, chosen, structured, filled])
def test_given_beginnings_cost_nothing_under_the_released_template(
    task: Callable[[LLM, int], float], diffusion_source: str, count: Callable[[int, int], int],
    record: Callable[..., Any],
) -> None:  # fmt: skip
    """Catches answers that are worse because they stand where the model expects a thought."""
    pytest.importorskip("llguidance")
    n = count(2, 1000)
    own = right(nano(), task, n)
    after = right(nano_under(diffusion_source), task, n)
    before = right(unclosed(diffusion_source), task, n)
    middle, half = difference(after, own)
    name = f"nano: {n} {task.__name__}"
    record(f"{name}, own template", fmean(own))
    record(f"{name}, released template, thought left open", fmean(before))
    record(f"{name}, released template", fmean(after))
    record(f"{name}, released less own, least of the interval", middle - half, f">= -{POINTS}")
    assert middle - half >= -POINTS
    assert fmean(before) <= fmean(after)
