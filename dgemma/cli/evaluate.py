"""`dgemma evaluate`: score a model on held-out examples; the README's table is this output."""

from __future__ import annotations

import argparse
import json
import sys

from dgemma.cli.options import add_model
from dgemma.errors import InvalidRequest, nearest
from dgemma.types import Mode


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, positional=True)
    parser.add_argument("-n", type=int, default=500, help="examples of each task (500)")
    parser.add_argument("--tasks", default="sudoku,json", help="comma-separated, or all")
    parser.add_argument(
        "--mode", choices=("both", "diffusion", "autoregressive"), default="both", help="both"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; progress goes to standard error."""
    from dgemma.evaluate.report import as_markdown, as_values
    from dgemma.evaluate.run import evaluate
    from dgemma.llm import load
    from dgemma.tasks import TASKS

    tasks = list(TASKS) if arguments.tasks == "all" else arguments.tasks.split(",")
    for task in tasks:
        if task not in TASKS:
            raise InvalidRequest(f"unknown task {task!r}{nearest(task, TASKS)}")
    if arguments.n < 1:
        raise InvalidRequest(f"-n must be at least 1, got {arguments.n}")
    both: list[Mode] = ["diffusion", "autoregressive"]
    modes = both if arguments.mode == "both" else [arguments.mode]
    llm = load(
        arguments.model, device=arguments.device, dtype=arguments.dtype,
        strict=not arguments.no_strict,
    )  # fmt: skip
    results = evaluate(
        llm, tasks, modes, arguments.n, report=lambda line: print(line, file=sys.stderr)
    )
    print(json.dumps(as_values(results)) if arguments.json else as_markdown(results))
    return 0
