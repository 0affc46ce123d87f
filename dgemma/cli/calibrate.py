"""`dgemma calibrate`: fit the limits of a checkpoint from its own answers, and keep them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.cli.files import check_target, read_text
from dgemma.cli.options import add_model, open_model, path_of, positive, say
from dgemma.cli.progress import Progress
from dgemma.errors import InvalidRequest
from dgemma.files.read import exists, parse_json

if TYPE_CHECKING:
    from dgemma.evaluate.calibrate import Runs
    from dgemma.llm import LLM


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    add = parser.add_argument
    add("-n", type=positive, metavar="N", help="examples of each task (200)")
    add("--tasks", help="nano's tasks to run, comma-separated (all)")
    prompts = "own prompts in place of tasks: JSON lines with messages or prompt, and answer"
    add("--prompts", type=Path, metavar="FILE", help=prompts)
    out = "file to write (calibration.json beside the checkpoint, which is read on load)"
    add("--out", type=Path, metavar="FILE", help=out)
    add("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "Fits what restart_after=auto and quality=careful stand for. Temperatures of decisions\n"
        "that the file has stay. A model that does not know nano's tasks needs --prompts.\n\n"
        "example:\n  dgemma calibrate nano --out calibration.json"
    )


def read_prompts(path: Path) -> list[Any]:
    """The values of a file of JSON lines.

    Raises:
        InvalidRequest: it cannot be read, a line is not JSON, or there is none.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except ValueError as error:
                raise InvalidRequest(f"{path}, line {number} is not JSON: {error}") from error
    if not rows:
        raise InvalidRequest(f"{path} has no prompts; write one JSON object a line")
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what the limits were fitted on."""
    from dgemma.compose.calibration import FILE, Calibration
    from dgemma.tasks import tasks_named

    if arguments.prompts is not None and (arguments.tasks or arguments.n):
        raise InvalidRequest("--prompts takes the place of --tasks and -n; leave those out")
    tasks = tasks_named(arguments.tasks or "all")
    rows = None if arguments.prompts is None else read_prompts(arguments.prompts)
    found = path_of(arguments)
    target = arguments.out or (found.parent if found.is_file() else found) / FILE
    check_target(target)
    before = Calibration.load(target) if exists(target) else Calibration()
    llm = open_model(arguments)
    with Progress("calibrating") as bar:
        every = _runs(llm, tasks, rows, arguments, bar)
    from dgemma.evaluate.calibrate import as_markdown, fit

    fitted = fit(every, before)
    fitted.save(target)
    if arguments.json:
        limits = {"restart_after": fitted.restart_after, "least_logprob": fitted.least_logprob}
        print(json.dumps({"file": str(target), **limits}))
    else:
        print(as_markdown(every))
        least = fitted.least_logprob
        bound = "none: too few right answers" if least is None else f"{least:.4f}"
        print(f"\n{target}: restart_after {fitted.restart_after}, least_logprob {bound}")
    if target.parent.resolve() != llm.checkpoint.directory.resolve() or target.name != FILE:
        say(f"other commands take it with: --calibration {target}")
    return 0


def _runs(
    llm: LLM, tasks: list[str], rows: list[Any] | None, arguments: argparse.Namespace,
    bar: Progress,
) -> list[Runs]:  # fmt: skip
    from dgemma.evaluate.calibrate import answer, from_prompts, from_task

    if rows is not None:
        named = {str(arguments.prompts): from_prompts(llm, rows)}
    else:
        named = {task: from_task(llm, task, arguments.n or 200) for task in tasks}
    return [answer(llm, name, asked, bar.part) for name, asked in named.items()]
