"""`bench compare`: ours beside `transformers`.

Each run is a process of its own that loads, measures and ends, in the order A B A B: a machine that
warms up or slows down does so for both, no program inherits the other's memory, and only one model
is in memory at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dgemma.bench.drive import Where, prompt_ids
from dgemma.bench.report import Cell, Report, Table
from dgemma.bench.stats import median, ratio
from dgemma.errors import EngineError
from dgemma.evaluate.parity import check_comparable
from dgemma.weights.files import load_config

PROGRAMS = ("ours", "transformers")
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "2000000000",
}
"""glibc keeps freed memory, so temporaries are not filled with fresh pages again and again."""

MODES: Mapping[str, Mapping[str, str]] = {"plain": {}, "tuned": TUNED}
NOTES = (
    "Each run is a process of its own (load, measure, end), in the order A B A B; only one model "
    "is in memory at a time. One step warms up. Same checkpoint, ids, dtype, threads, "
    "number of steps; no early stop.",
    "A run's step is the median of its steps without the first of the canvas; a program's is the "
    "median over its runs, the ratio is of these medians.",
    "Our engine encodes the last piece of a prompt (here all of it, up to 1,024 tokens) and makes "
    "the first step in one pass: its prefill is that pass less the median step. `first frame` is "
    "measured, prefill and first step together.",
    f"tuned: {' '.join(f'{k}={v}' for k, v in TUNED.items())}.",
)


@dataclass(frozen=True)
class CompareRun:
    """One run of either program; see `child`.

    Attributes:
        directory: of the checkpoint.
        cache: of the reference: "dynamic", or "static", with which it compiles its step.
        attention: our own path.
    """

    directory: str
    prompt: int
    steps: int
    device: str
    dtype: str
    threads: int
    cache: str = "dynamic"
    attention: str = "auto"


@dataclass
class Runs:
    """The results of one program in one mode: one entry a run."""

    step_ms: list[float] = field(default_factory=list)
    first_frame_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    peak_bytes: list[float] = field(default_factory=list)

    def add(self, found: Mapping[str, Any]) -> None:
        """Add the output of a child; the first step of the canvas is left out."""
        steps = found["step_ms"]
        self.step_ms.append(median(steps[1:] or steps))
        self.first_frame_ms.append(found["first_frame_ms"])
        self.prefill_ms.append(found["prefill_ms"])
        if found.get("peak_bytes") is not None:
            self.peak_bytes.append(found["peak_bytes"])


Results = dict[tuple[str, str], Runs]
"""(mode, program) -> runs."""


def start_child(program: str, job: CompareRun, extra: Mapping[str, str]) -> dict[str, Any]:
    """Run a child and read its line.

    Raises:
        EngineError: it failed; the message has its last line.
    """
    environment = {k: v for k, v in os.environ.items() if k not in TUNED}
    environment |= {"OMP_NUM_THREADS": str(job.threads), **extra}
    command = [sys.executable, "-m", "dgemma.bench.child", program, json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"the run of {program} failed: {said[-1]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(
    job: CompareRun, pairs: int, modes: Sequence[str], say: Callable[[str], None],
    begin: Callable[[str, CompareRun, Mapping[str, str]], dict[str, Any]] = start_child,
) -> Results:  # fmt: skip
    """All runs: ours, theirs, ours, theirs, ... in each mode.

    Args:
        job: see `CompareRun`.
        pairs: of runs in each mode.
        modes: of `MODES`.
        say: gets a line after each run.
        begin: makes a run.
    """
    results: Results = {(mode, program): Runs() for mode in modes for program in PROGRAMS}
    for pair in range(pairs):
        for mode in modes:
            for program in PROGRAMS:
                runs = results[mode, program]
                runs.add(begin(program, job, MODES[mode]))
                say(
                    f"pair {pair + 1} of {pairs}, {mode}, {program}: "
                    f"step {runs.step_ms[-1]:.1f} ms, prefill {runs.prefill_ms[-1]:.1f} ms"
                )
    return results


def ratios(results: Results, mode: str) -> dict[str, float]:
    """Ours over theirs in one mode."""
    ours, theirs = (results[mode, program] for program in PROGRAMS)
    return {
        "step_ratio": ratio(ours.step_ms, theirs.step_ms),
        "prefill_ratio": ratio(ours.prefill_ms, theirs.prefill_ms),
        "first_frame_ratio": ratio(ours.first_frame_ms, theirs.first_frame_ms),
    }


def values(results: Results) -> dict[str, Any]:
    """Every number, for programs."""
    modes = dict.fromkeys(mode for mode, _ in results)
    return {
        mode: {program: results[mode, program] for program in PROGRAMS} | ratios(results, mode)
        for mode in modes
    }


def table(results: Results, prompt: int) -> Table:
    """The results for people."""
    rows: list[list[Cell]] = []
    for (mode, program), runs in results.items():
        found: list[float | None] = [None] * 3
        if program == "ours":
            found = list(ratios(results, mode).values())
        spread = f"{min(runs.step_ms):.4g} to {max(runs.step_ms):.4g}"
        rows.append(
            [
                mode, program, len(runs.step_ms), median(runs.step_ms), spread, found[0],
                median(runs.prefill_ms), found[1], median(runs.first_frame_ms), found[2],
                median(runs.peak_bytes) / 1e9,
            ]
        )  # fmt: skip
    head = (
        "mode", "program", "runs", "step, ms", "runs' steps, ms", "ratio", "prefill, ms",
        "prefill ratio", "first frame, ms", "first frame ratio", "peak memory, GB",
    )  # fmt: skip
    return Table(f"Denoising steps at a prompt of {prompt} tokens", head, rows)


def report(where: Where, options: Namespace, say: Callable[[str], None]) -> Report:
    """Measure and lay out."""
    where.set_threads()
    directory, device, dtype = where.resolved()
    check_comparable(directory)
    config = load_config(directory, where.strict)
    prompt_ids(config, options.prompt)  # refused before anything is run
    job = CompareRun(
        str(directory), options.prompt, options.steps, device, dtype, torch.get_num_threads(),
        options.cache, where.attention,
    )  # fmt: skip
    modes = list(MODES) if options.modes == "both" else [options.modes]
    results = measure(job, options.pairs, modes, say)
    return Report(
        "Ours and transformers",
        where.command,
        where.subject(config, device, dtype),
        [table(results, options.prompt)],
        values(results),
        NOTES,
    )
