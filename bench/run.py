"""The frame of the programs in this folder: their options, their errors, their output."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from bench.chart import Lines, as_svg
from dgemma.bench.drive import Where
from dgemma.bench.machine import busy
from dgemma.bench.report import Report
from dgemma.cli.bench import add_where, deliver, output, where_of
from dgemma.cli.files import write_text
from dgemma.cli.main import Parser, ending
from dgemma.cli.options import say

Say = Callable[[str], None]
Number = TypeVar("Number", int, float)
Measure = Callable[[Where, argparse.Namespace, Say], tuple[Report, Sequence[Lines]]]


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
    parser.add_argument("--svg", type=output, metavar="FILE", help="draw charts")
    configure(parser)

    def run() -> int:
        arguments = parser.parse(words)
        arguments.command_line = f"{program} {shlex.join(words)}"
        where = where_of(arguments)
        if warning := busy():
            say(warning)
        report, charts = measure(where, arguments, say)
        deliver(report, arguments.json)
        if arguments.svg is not None:
            machine = ", ".join(report.machine[name] for name in ("processor", "GPU", "commit"))
            caption = [report.command, ", ".join(report.subject.values()), machine]
            write_text(arguments.svg, as_svg(charts, caption))
        return 0

    return ending(run)


def ascending(kind: type[Number]) -> Callable[[str], list[Number]]:
    """An option's value: numbers above 0 with commas between them, in ascending order."""

    def parse(text: str) -> list[Number]:
        try:
            found = sorted({kind(word) for word in text.split(",")})
        except ValueError:
            found = []
        if not found or not all(0 < number < math.inf for number in found):
            raise argparse.ArgumentTypeError(
                f"give numbers above 0 with commas between them, not {text!r}"
            )
        return found

    return parse


sizes, rates = ascending(int), ascending(float)
