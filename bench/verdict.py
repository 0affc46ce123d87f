"""`python -m bench.verdict`: what a verdict costs: the encoder's reading of the answer.

Both sides run in turns in this process: the same answers with `verdict=True` and without. The last
canvas is encoded for the verdict alone; a canvas before it is encoded anyway.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.chart import Lines
from bench.run import Say, main
from dgemma.bench.drive import Where, finished, prompt_ids
from dgemma.bench.report import Cell, Report, Table, plain
from dgemma.bench.stats import median
from dgemma.cli.options import positive
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.types import Request

NOTES = (
    "CPU time of the process, both sides in turns, medians. Every canvas makes all its steps, and "
    "no end id is allowed. `a verdict` is the difference for each canvas; `in steps` is the same "
    "over the time of an answer's step.",
)


@dataclass(frozen=True)
class VerdictTimes:
    """Answers of one length; milliseconds of each run."""

    canvases: int
    steps: int
    without_ms: list[float]
    with_ms: list[float]

    @property
    def extra_ms(self) -> float:
        """Of one canvas."""
        return (median(self.with_ms) - median(self.without_ms)) / self.canvases

    @property
    def step_ms(self) -> float:
        """A step, with its share of the prompt and of what is encoded."""
        return median(self.without_ms) / (self.steps * self.canvases)

    @property
    def in_steps(self) -> float:
        """A verdict over a step."""
        return self.extra_ms / self.step_ms

    @property
    def ratio(self) -> float:
        """With over without."""
        return median(self.with_ms) / median(self.without_ms)


def measure_length(llm: LLM, prompt: int, canvases: int, steps: int, runs: int) -> VerdictTimes:
    """Run both sides in turns."""
    tokens = canvases * llm.config.canvas_length
    ids = prompt_ids(llm.config, prompt, 0)
    own = SamplingParams(
        seed=0, max_steps=steps, confidence_threshold=0.0, restart_after=0,
        max_tokens=tokens, min_tokens=tokens,
    )  # fmt: skip
    spent: list[list[float]] = [[], []]
    for run in range(-1, runs):  # one run of each side to warm up
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            params = SamplingParams.of(own, verdict=bool(side))
            began = time.process_time()
            output = finished(llm.submit(Request(token_ids=tuple(ids), params=params)).result())
            took = (time.process_time() - began) * 1e3
            assert (output.usage.steps, output.usage.canvases) == (steps * canvases, canvases)
            assert (output.verdict is not None) == bool(side)
            if run >= 0:
                spent[side].append(took)
    return VerdictTimes(canvases, steps, *spent)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    parser.add_argument("--prompt", type=positive, default=64, help="tokens of the prompt (64)")
    parser.add_argument("--steps", type=positive, default=12, help="steps of a canvas (12)")
    parser.add_argument("--runs", type=positive, default=5, help="runs of each side (5)")


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """Answers of one canvas and of two."""
    llm = where.open()
    found = []
    for canvases in (1, 2):
        one = measure_length(llm, options.prompt, canvases, options.steps, options.runs)
        say(f"{canvases} canvases: a verdict takes {one.in_steps:.2f} steps, {one.ratio:.3f} x")
        found.append(one)
    head = ("canvases", "steps", "without, ms", "with, ms", "ratio", "a verdict, ms", "in steps")
    cells: list[list[Cell]] = [
        [one.canvases, one.steps * one.canvases, median(one.without_ms), median(one.with_ms),
         one.ratio, one.extra_ms, one.in_steps]
        for one in found
    ]  # fmt: skip
    tables = [Table("An answer with a verdict, and without", head, cells)]
    return where.report("The cost of a verdict", llm, tables, plain(found), NOTES), ()


if __name__ == "__main__":
    sys.exit(main("verdict", __doc__, configure, measure))
