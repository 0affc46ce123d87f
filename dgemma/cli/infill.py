"""`dgemma infill`: fill the holes of a text."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from dgemma.cli.files import check_target, deliver, read_argument
from dgemma.cli.live import LEGEND, LIVE, watch
from dgemma.cli.options import NOT_THE_ANSWER, add_model, add_sampling, open_model, sampling
from dgemma.errors import InvalidRequest
from dgemma.params import REFUSED_BY_FILL

MARK = "___"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, then="TEXT")
    add = parser.add_argument
    add("text", metavar="TEXT", help=f"text with {MARK} for each hole, - or @FILE to read it")
    add("--mark", metavar="TEXT", default=MARK, help=f"mark of a hole ({MARK})")
    add("--context", metavar="TEXT", help="the subject of the text")
    add("--max-hole", type=int, metavar="N", help="maximum tokens of a hole")
    add("--no-search", action="store_true", help="every hole has exactly --max-hole tokens")
    add("--live", action="store_true", help=LIVE)
    add("--in-place", action="store_true", help="write the result into @FILE")
    add("--diff", action="store_true", help="print the changes, write nothing")
    add("--json", action="store_true", help="print text and holes as JSON")
    add_sampling(parser, (*REFUSED_BY_FILL, *NOT_THE_ANSWER))
    parser.epilog = f"example:\n  dgemma infill nano 'Mira has a ___ that gives milk.'\n\n{LEGEND}"


def run(arguments: argparse.Namespace) -> int:
    """Print the text, its diff or JSON, or write it back."""
    from dgemma.compose.fill import Hole, fill

    path = Path(arguments.text[1:]) if arguments.text.startswith("@") else None
    if arguments.in_place and path is None:
        raise InvalidRequest("--in-place needs a file to write to; give the text as @FILE")
    if arguments.json and arguments.diff:
        raise InvalidRequest("--json and --diff are two ways to print the same; choose one")
    if not arguments.mark:
        raise InvalidRequest("--mark is empty; give the mark of a hole")
    most, params = arguments.max_hole, sampling(arguments)
    if most is not None and most < 0:
        raise InvalidRequest(f"--max-hole must be 0 or more, got {most}")
    if arguments.no_search and most is None and params.max_tokens is None:
        raise InvalidRequest("--no-search needs a length; give --max-hole")
    text = read_argument(arguments.text)
    pieces = text.split(arguments.mark)
    if len(pieces) == 1:
        raise InvalidRequest(
            f"the text has no hole; write {arguments.mark} where something is missing"
        )
    hole = Hole(max_tokens=most)
    parts: list[str | Hole] = [pieces[0]]
    for piece in pieces[1:]:
        parts += [hole, piece]
    if path and arguments.in_place and not arguments.diff:
        check_target(path)
    llm = open_model(arguments)
    search, context = not arguments.no_search, arguments.context
    plan = fill(llm.facts, parts, params, context=context, search=search)
    filled = watch(llm, plan, params) if arguments.live else llm.run_plan(plan)
    if arguments.in_place or arguments.diff:
        deliver(path or Path("text"), text, filled.text, show=arguments.diff)
    if arguments.json:
        values = {"text": filled.text, "seed": filled.seed,
                  "holes": [asdict(hole) for hole in filled.holes],
                  "usage": asdict(filled.usage)}  # fmt: skip
        print(json.dumps(values, ensure_ascii=False))
    elif not (arguments.in_place or arguments.diff):
        sys.stdout.write(filled.text if filled.text.endswith("\n") else f"{filled.text}\n")
    return 0
