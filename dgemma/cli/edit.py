"""`dgemma edit`: write parts of a file anew, in place. Knows lines, spans and how files change."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dgemma.cli.files import deliver, read_text
from dgemma.cli.options import add_model, add_sampling, open_model, sampling
from dgemma.errors import InvalidRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="UTF-8 text")
    parser.add_argument(
        "--span", action="append", metavar="FIRST:LAST", default=[],
        help="lines that may change, counted from 1; repeatable; none: all of the file",
    )  # fmt: skip
    parser.add_argument("--instruction", help="what to do")
    parser.add_argument(
        "--strength", type=float, default=0.6, help="how much of a span gives way, 0 to 1 (0.6)"
    )
    parser.add_argument("--context", help="what the text is about")
    parser.add_argument("--diff", action="store_true", help="show what would change, write nothing")
    parser.add_argument("--output", type=Path, help="write here and leave the file as it is")
    add_model(parser)
    add_sampling(parser, around_text=True)


def lines_to_span(text: str, span: str) -> tuple[int, int]:
    """Characters of the lines FIRST to LAST, the last line's end not among them.

    Raises:
        InvalidRequest: not of that form, or lines that the text does not have.
    """
    first, _, last = span.partition(":")
    try:
        a, b = int(first), int(last or first)
    except ValueError as error:
        raise InvalidRequest(f"--span {span}: write FIRST:LAST, two line numbers") from error
    lines = text.split("\n")
    count = len(lines) - (1 if text.endswith("\n") else 0)
    if not 1 <= a <= b <= count:
        raise InvalidRequest(f"--span {span}: write FIRST:LAST, of lines 1 to {count}")
    start = sum(len(line) + 1 for line in lines[: a - 1])
    end = start + sum(len(line) + 1 for line in lines[a - 1 : b]) - 1
    return start, end - 1 if text[start:end].endswith("\r") else end


def run(arguments: argparse.Namespace) -> int:
    """Write the file, or show what would change."""

    text = read_text(arguments.file)
    spans = [lines_to_span(text, span) for span in arguments.span] or None
    params = sampling(arguments)
    llm = open_model(arguments)
    edited = llm.edit(
        text, arguments.instruction, spans, arguments.strength, params, context=arguments.context
    )
    target = arguments.output or arguments.file
    before = text if arguments.output is None or arguments.diff else ""
    deliver(target, before, edited.text, show=arguments.diff)
    changed = sum(change.old != change.new for change in edited.changes)
    print(f"{changed} of {len(edited.changes)} spans changed (seed {edited.seed})", file=sys.stderr)
    return 0
