"""Command lines that run in the tests' own process, and a terminal for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib import import_module

import pytest

from dgemma.cli import main as cli

Ran = tuple[int, str, str]
"""Exit code, standard output, standard error."""


def parser_of(command: str) -> cli.Parser:
    """The parser of a command."""
    parser = cli.Parser(prog=f"dgemma {command}")
    import_module(f"dgemma.cli.{command}").configure(parser)
    return parser


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a person sees, one state of the last line after the other."""
        return [part.rstrip() for part in self.getvalue().split("\r") if part.strip()]


def run_command(
    words: Sequence[str],
    capsys: pytest.CaptureFixture[str],
    main: Callable[[Sequence[str]], int] = cli.main,
) -> Ran:
    """The outcome of `dgemma`, or another program, with these words."""
    capsys.readouterr()
    try:
        code = main(list(words))
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err
