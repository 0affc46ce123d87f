"""`python -m bench.llama PROGRAM`: the timing that a llama.cpp diffusion program prints.

Source: `examples/diffusion` of llama.cpp and of its DiffusionGemma forks.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgemma.bench.report import Report, Table
from dgemma.bench.stats import median
from dgemma.cli.bench import deliver, output
from dgemma.cli.main import Parser, ending
from dgemma.cli.options import positive
from dgemma.errors import EngineError, InvalidRequest

LINE = re.compile(
    r"total time:\s*(?P<total>[\d.]+)\s*ms,\s*time per step:\s*(?P<step>[\d.]+)\s*ms"
    r"(?:\s*\((?P<steps>\d+) steps over (?P<blocks>\d+) blocks)?"
)


@dataclass(frozen=True, slots=True)
class LlamaTiming:
    """The timing of one run.

    Attributes:
        total_ms: of the whole answer, prefill included.
        step_ms: total / steps, as the program itself computes it.
        steps, blocks: None where the line does not say.
    """

    total_ms: float
    step_ms: float
    steps: int | None = None
    blocks: int | None = None


def parse(output: str, program: str) -> LlamaTiming:
    """The last timing line of a program's output.

    Raises:
        EngineError: there is none.
    """
    lines = list(LINE.finditer(output))
    if not lines:
        raise EngineError(
            f"{program} printed no line 'total time: ... ms, time per step: ... ms'; "
            "is it a llama.cpp diffusion program?"
        )
    found = lines[-1]
    steps, blocks = (int(n) if (n := found[key]) else None for key in ("steps", "blocks"))
    return LlamaTiming(float(found["total"]), float(found["step"]), steps, blocks)


def timed(binary: Path, words: Sequence[str], runs: int) -> list[LlamaTiming]:
    """Run a program several times.

    Raises:
        InvalidRequest: there is no such program.
        EngineError: it failed, or printed no timing that is known.
    """
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        raise InvalidRequest(f"{binary}: no such program; build llama.cpp with diffusion")
    found = []
    for _ in range(runs):
        done = subprocess.run(
            [str(binary), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL,
            errors="replace",
        )  # fmt: skip
        output = f"{done.stdout}\n{done.stderr}"
        if done.returncode:
            last = (output.strip().splitlines() or ["nothing"])[-1]
            raise EngineError(f"{binary.name} ended with code {done.returncode}: {last.strip()}")
        found.append(parse(output, binary.name))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Time a program; everything after its name goes to it."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(prog="python -m bench.llama", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=positive, default=5, help="runs of the program (5)")
    parser.add_argument("--json", type=output, metavar="FILE", help="write every number as JSON")
    parser.add_argument("program", type=Path, metavar="PROGRAM")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="model, prompt, steps, threads"
    )

    def run() -> int:
        options = parser.parse_args(words)
        found = timed(options.program, options.rest, options.runs)
        rows = [[timing.step_ms, timing.total_ms, timing.steps] for timing in found]
        middle = median([timing.step_ms for timing in found])
        report = Report(
            f"llama.cpp: {middle:.4g} ms a step, the median of {len(found)} runs",
            f"{parser.prog} {shlex.join(words)}",
            {"program": str(options.program)},
            [Table("Each run", ("step, ms", "total, ms", "steps"), rows)],
            {"step_ms": middle, "runs": found},
        )
        deliver(report, options.json)
        return 0

    return ending(run)


if __name__ == "__main__":
    sys.exit(main())
