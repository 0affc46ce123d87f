"""`bench compare`: ours beside `transformers`, and beside a llama.cpp diffusion binary.

Each run is a process of its own that loads, measures and ends, in the order A B A B: a machine that
warms up or slows down does so for both, no program inherits the other's memory, and only one model
is in memory at a time. Knows processes and environments. Knows nothing about models.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgemma.bench.chart import Bars
from dgemma.bench.llama import LlamaTiming, parse
from dgemma.bench.report import Table
from dgemma.bench.stats import median, ratio
from dgemma.errors import EngineError, InvalidRequest

PROGRAMS = ("ours", "transformers")
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "2000000000",
}
"""glibc keeps what is freed, so temporaries are not filled with fresh pages again and again."""

MODES: Mapping[str, Mapping[str, str]] = {"as it comes": {}, "tuned": TUNED}
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
    """What both programs are asked for.

    Attributes:
        cache: of the reference: "dynamic", or "static", with which it compiles its step.
    """

    directory: Path
    prompt: int
    steps: int
    device: str
    dtype: str
    threads: int
    cache: str = "dynamic"

    def words(self) -> list[str]:
        """As a command line of `child`."""
        return [
            str(self.directory), "--prompt", str(self.prompt), "--steps", str(self.steps),
            "--device", self.device, "--dtype", self.dtype, "--threads", str(self.threads),
            "--cache", self.cache,
        ]  # fmt: skip


@dataclass
class Runs:
    """What one program gave in one mode: one entry a run."""

    step_ms: list[float] = field(default_factory=list)
    first_frame_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    peak_bytes: list[float] = field(default_factory=list)

    def add(self, found: Mapping[str, Any]) -> None:
        """Take in what a child printed; the first step of the canvas is kept apart."""
        steps = found["step_ms"]
        self.step_ms.append(median(steps[1:] or steps))
        self.first_frame_ms.append(found["first_frame_ms"])
        self.prefill_ms.append(found["prefill_ms"])
        if found.get("peak_bytes") is not None:
            self.peak_bytes.append(found["peak_bytes"])


Results = dict[tuple[str, str], Runs]
"""(mode, program) -> runs."""


def start(program: str, job: CompareRun, extra: Mapping[str, str]) -> dict[str, Any]:
    """Run a child and read its line.

    Raises:
        EngineError: it failed; the message has its last line.
    """
    environment = {k: v for k, v in os.environ.items() if k not in TUNED}
    environment |= {"OMP_NUM_THREADS": str(job.threads), **extra}
    command = [sys.executable, "-m", "dgemma.bench.child", program, *job.words()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"the run of {program} failed: {said[-1]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(
    job: CompareRun, pairs: int, modes: Sequence[str], say: Callable[[str], None],
    begin: Callable[[str, CompareRun, Mapping[str, str]], dict[str, Any]] = start,
) -> Results:  # fmt: skip
    """All runs: ours, theirs, ours, theirs, ... in each mode.

    Args:
        job: see `CompareRun`.
        pairs: of runs in each mode.
        modes: of `MODES`.
        say: told of each run.
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


def measure_llama(binary: Path, words: str, threads: int, pairs: int) -> list[LlamaTiming]:
    """Run a llama.cpp diffusion binary as often as the pairs.

    Args:
        binary: the program.
        words: its arguments, as in a shell.
        threads: given as OMP_NUM_THREADS; the binary's own option is among `words`.

    Raises:
        InvalidRequest: there is no such program.
        EngineError: it failed, or printed no timing that is known.
    """
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        raise InvalidRequest(f"--llama {binary}: no such program; build llama.cpp with diffusion")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found = []
    for _ in range(pairs):
        done = subprocess.run(
            [str(binary), *shlex.split(words)], env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
        output = f"{done.stdout}\n{done.stderr}"
        if done.returncode:
            last = (output.strip().splitlines() or ["nothing"])[-1]
            raise EngineError(f"{binary.name} ended with code {done.returncode}: {last.strip()}")
        found.append(parse(output, binary.name))
    return found


def values(results: Results, llama: Sequence[LlamaTiming]) -> dict[str, Any]:
    """Every number, for programs."""
    out: dict[str, Any] = {}
    for mode in dict.fromkeys(mode for mode, _ in results):
        ours, theirs = (results[mode, program] for program in PROGRAMS)
        out[mode] = {
            **{program: vars(results[mode, program]) for program in PROGRAMS},
            "step_ratio": ratio(ours.step_ms, theirs.step_ms),
            "prefill_ratio": ratio(ours.prefill_ms, theirs.prefill_ms),
            "first_frame_ratio": ratio(ours.first_frame_ms, theirs.first_frame_ms),
        }
    if llama:
        out["llama.cpp"] = {"step_ms": [timing.step_ms for timing in llama]}
    return out


def tables(
    results: Results, llama: Sequence[LlamaTiming], prompt: int
) -> tuple[list[Table], list[Bars]]:
    """The results for people."""
    rows: list[list[Any]] = []
    modes = list(dict.fromkeys(mode for mode, _ in results))
    for mode in modes:
        theirs = results[mode, "transformers"]
        for program in PROGRAMS:
            runs = results[mode, program]
            peak = median(runs.peak_bytes) / 1e9
            spread = f"{min(runs.step_ms):.4g} to {max(runs.step_ms):.4g}"
            own = program == "ours"
            rows.append(
                [
                    mode, program, len(runs.step_ms), median(runs.step_ms), spread,
                    ratio(runs.step_ms, theirs.step_ms) if own else None,
                    median(runs.prefill_ms),
                    ratio(runs.prefill_ms, theirs.prefill_ms) if own else None,
                    median(runs.first_frame_ms),
                    ratio(runs.first_frame_ms, theirs.first_frame_ms) if own else None, peak,
                ]
            )  # fmt: skip
    if llama:
        steps = [timing.step_ms for timing in llama]
        spread = f"{min(steps):.4g} to {max(steps):.4g}"
        row = ["as given", "llama.cpp", len(steps), median(steps), spread]
        rows.append([*row, None, None, None, None, None, None])
    head = (
        "mode", "program", "runs", "step, ms", "runs' steps, ms", "ratio", "prefill, ms",
        "prefill ratio", "first frame, ms", "first frame ratio", "peak memory, GB",
    )  # fmt: skip
    series = {
        program: [median(results[mode, program].step_ms) for mode in modes] for program in PROGRAMS
    }
    chart = Bars(f"Median denoising step, prompt {prompt}", "ms", modes, series, stacked=False)
    return [Table(f"Denoising steps at a prompt of {prompt} tokens", head, rows)], [chart]
