"""`dgemma edit`: rewrite parts of a file in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dgemma.cli.files import check_target, deliver, read_text
from dgemma.cli.live import LEGEND, LIVE, watch
from dgemma.cli.options import NOT_THE_ANSWER, add_model, add_sampling, open_model, sampling
from dgemma.errors import InvalidRequest
from dgemma.params import REFUSED_BY_EDIT

MARK = "\ufeff"
"""A byte order mark, which some editors put at a file's beginning."""


NANO = "nano never learned to edit: it shows how the command works, and writes nonsense."


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, then="FILE")
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="UTF-8 text")
    span = "lines that may change, counted from 1; repeatable (with --instruction: all)"
    add("--span", action="append", metavar="FIRST:LAST", default=[], help=span)
    add("--instruction", metavar="TEXT", help="the change to make")
    strength = "how much of a span may change, 0 to 1 (0.6)"
    add("--strength", type=float, metavar="X", default=0.6, help=strength)
    add("--context", metavar="TEXT", help="the subject of the text")
    add("--live", action="store_true", help=LIVE)
    add("--diff", action="store_true", help="print the changes, write nothing")
    add("--output", type=Path, metavar="FILE", help="write here, leave the file as it is")
    add_sampling(parser, (*REFUSED_BY_EDIT, *NOT_THE_ANSWER))
    parser.epilog = f"example:\n  dgemma edit letter.txt --span 2:3 --diff\n\n{NANO}\n\n{LEGEND}"


def _count(text: str) -> int:
    """Lines of a text; an empty one has one."""
    return text.count("\n") + (not text.endswith("\n"))


def _numbers(text: str, span: str) -> tuple[int, int]:
    """The lines FIRST and LAST of a span, counted from 1."""
    first, _, last = span.partition(":")
    try:
        a, b = int(first), int(last or first)
    except ValueError as error:
        raise InvalidRequest(f"--span {span}: write FIRST:LAST, two line numbers") from error
    if not 1 <= a <= b <= _count(text):
        raise InvalidRequest(f"--span {span}: write FIRST:LAST, of lines 1 to {_count(text)}")
    return a, b


def lines_to_span(text: str, span: str) -> tuple[int, int]:
    """Characters of the lines FIRST to LAST; without a byte order mark and the last line's end.

    Raises:
        InvalidRequest: not of that form, or lines that the text does not have.
    """
    a, b = _numbers(text, span)
    lines = text.split("\n")
    start = sum(len(line) + 1 for line in lines[: a - 1])
    end = start + sum(len(line) + 1 for line in lines[a - 1 : b]) - 1
    if text[start:end].endswith("\r"):
        end -= 1
    if a == 1 and text.startswith(MARK):
        start += len(MARK)
    return start, end


def all_spans(text: str, given: Sequence[str], instruction: str | None) -> list[tuple[int, int]]:
    """Characters that may change, in order; all lines of the text if no span is given.

    Raises:
        InvalidRequest: spans out of order, overlapping or out of range; nothing to do.
    """
    if not given:
        if not instruction:
            raise InvalidRequest("give an --instruction, or a --span of lines to rewrite")
        start, end = lines_to_span(text, f"1:{_count(text)}")
        if start == end:
            raise InvalidRequest("the text is empty; name a --span to write something there")
        return [(start, end)]
    free = 1
    for span in given:
        first, last = _numbers(text, span)
        if first < free:
            raise InvalidRequest(
                f"--span {span} begins before line {free}, up to which the one before it goes; "
                "give spans in order and without overlap"
            )
        free = last + 1
    return [lines_to_span(text, span) for span in given]


def run(arguments: argparse.Namespace) -> int:
    """Write the file, or print the changes."""
    from dgemma.compose.edit import edit
    from dgemma.compose.plan import share

    share("--strength", arguments.strength)
    params = sampling(arguments)
    text = read_text(arguments.file)
    spans = all_spans(text, arguments.span, arguments.instruction)
    if not arguments.diff:
        check_target(arguments.output or arguments.file)
    llm = open_model(arguments)
    plan = edit(
        llm.facts, text, arguments.instruction, spans, arguments.strength, params,
        context=arguments.context,
    )  # fmt: skip
    edited = watch(llm, plan, params) if arguments.live else llm.run_plan(plan)
    deliver(
        arguments.file, text, edited.text, show=arguments.diff, output=arguments.output
    )  # fmt: skip
    changed = sum(change.old != change.new for change in edited.changes)
    print(f"{changed} of {len(edited.changes)} spans changed (seed {edited.seed})", file=sys.stderr)
    return 0
