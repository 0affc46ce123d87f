"""The frame of the programs in this folder: their options, their errors, their output."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.chart import Chart, as_svg, caption
from dgemma.bench.drive import Where
from dgemma.bench.machine import busy
from dgemma.bench.report import Report, plain
from dgemma.cli.bench import add_where, check_writable, deliver, say, where_of, written
from dgemma.cli.main import Parser, ending

Say = Callable[[str], None]
Measure = Callable[[Where, argparse.Namespace, Say], tuple[Report, Sequence[Chart]]]


def main(
    name: str,
    about: str | None,
    configure: Callable[[argparse.ArgumentParser], None],
    measure: Measure,
    argv: Sequence[str] | None = None,
) -> int:
    """`python -m bench.NAME`: parse, measure, print; returns the exit code.

    Args:
        about: the program's docstring.
        configure: adds its own options.
        measure: gives the report and its charts.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    program = f"python -m bench.{name}"
    parser = Parser(prog=program, description=(about or "").partition("\n")[0])
    add_where(parser)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw charts")
    configure(parser)

    def run() -> int:
        arguments = parser.parse_args(words)
        arguments.command_line = f"{program} {shlex.join(words)}"
        check_writable(arguments.svg)
        where = where_of(arguments)
        if warning := busy():
            say(warning)
        report, charts = measure(where, arguments, say)
        deliver(report, arguments.json)
        if arguments.svg is not None:
            written(arguments.svg, as_svg(charts, caption(plain(report))))
        return 0

    return ending(run)


def sizes(text: str) -> list[int]:
    """An option's value: positive numbers with commas between them, in ascending order."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise argparse.ArgumentTypeError(
            f"give positive numbers with commas between them, not {text!r}"
        )
    return sorted({int(word) for word in words})
