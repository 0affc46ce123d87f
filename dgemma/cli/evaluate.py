"""`dgemma evaluate`: score a model on held-out examples; the README's table is this output."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from dgemma.cli.options import add_calibration, add_model, open_model, positive, say
from dgemma.cli.progress import Progress
from dgemma.errors import InvalidRequest
from dgemma.types import Mode

if TYPE_CHECKING:
    from dgemma.llm import LLM


MODES: list[Mode] = ["diffusion", "autoregressive", "exact"]
"""Those that write answers."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    add = parser.add_argument
    add("-n", type=positive, metavar="N", default=500, help="examples of each task (500)")
    add("--tasks", default="sudoku,json", help="comma-separated, or all (sudoku,json)")
    modes = ("both", "all", *MODES)
    about = "how answers are decoded; both: diffusion and autoregressive; all: exact, too (both)"
    add("--mode", choices=modes, default="both", help=about)
    against = "compare with a setting such as max_steps=12,ignore_tail=true, paired; repeatable"
    add("--against", action="append", metavar="SETTING", default=[], help=against)
    canvas = "compare pinning, filling, schemas and decisions with the plain way, paired"
    add("--canvas", action="store_true", help=canvas)
    verdict = "how well the model's own figures tell right answers from wrong ones"
    add("--verdict", action="store_true", help=verdict)
    add_calibration(parser)
    add("--json", action="store_true", help="print JSON")
    parser.epilog = "example:\n  dgemma evaluate nano -n 40 --tasks all"


def _compare(llm: LLM, tasks: list[str], arguments: argparse.Namespace, bar: Progress) -> int:
    """Settings beside each other; diffusion alone."""
    from dgemma.evaluate.paired import as_markdown, compare, parse_setting

    made = {}
    for task in tasks:
        settings = [parse_setting(text) for text in ("", *arguments.against)]
        made[task] = settings
        compare(
            llm, task, settings, arguments.n, 2 * llm.config.canvas_length, report=say,
            progress=bar.part,
        )  # fmt: skip
    bar.clear()
    if arguments.json:
        print(json.dumps({t: [dataclasses.asdict(s) for s in made[t]] for t in tasks}))
    else:
        print("\n\n".join(as_markdown(task, made[task]) for task in tasks))
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Print the table; progress goes to standard error."""
    from dgemma.tasks import tasks_named

    tasks = tasks_named(arguments.tasks)
    if arguments.canvas and (arguments.json or arguments.against):
        raise InvalidRequest("--canvas prints tables alone; leave out --json and --against")
    if arguments.verdict and (arguments.json or arguments.against or arguments.canvas):
        raise InvalidRequest("--verdict prints its table alone; leave out --json and --against")
    modes = {"both": MODES[:2], "all": MODES}.get(arguments.mode, [arguments.mode])
    llm = open_model(arguments)
    with Progress("evaluating") as bar:
        return _evaluate(llm, tasks, modes, arguments, bar)


def _evaluate(
    llm: LLM, tasks: list[str], modes: list[Mode], arguments: argparse.Namespace, bar: Progress
) -> int:
    from dgemma.evaluate.report import as_markdown, as_values
    from dgemma.evaluate.run import evaluate

    if arguments.against:
        return _compare(llm, tasks, arguments, bar)
    if arguments.verdict:
        from dgemma.evaluate import verdict

        judged = verdict.judge(llm, tasks, arguments.n, report=say, progress=bar.part)
        bar.clear()
        print(verdict.as_markdown(judged))
        return 0
    if arguments.canvas:
        from dgemma.evaluate.canvas import evaluate_canvas

        tables = evaluate_canvas(llm, arguments.n, say)
        bar.clear()
        print(tables)
        return 0
    results = evaluate(llm, tasks, modes, arguments.n, report=say, progress=bar.part)
    bar.clear()
    print(json.dumps(as_values(results)) if arguments.json else as_markdown(results))
    return 0
