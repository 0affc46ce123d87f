"""`dgemma`: the parser, the dispatch, and the only place where errors are formatted for people.

Commands are modules with `configure(parser)` and `run(arguments) -> exit code`, imported when
called, so `dgemma --help` does not import torch. Exit codes: 0 done, 1 the command's own verdict is
no, 2 wrong use or an error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from dgemma import __version__
from dgemma.errors import DGemmaError, nearest

COMMANDS = {
    "generate": "continue a prompt",
    "chat": "talk to a model, watching it write",
    "infill": "fill the holes of a text",
    "edit": "write parts of a file anew, in place",
    "decide": "answer typed questions about a text with probabilities",
    "serve": "serve a model over HTTP",
    "demo": "a Sudoku solved live by the bundled model, then a chat answer",
    "info": "sizes and memory of a model, from its config alone",
    "check": "parity with transformers on this machine",
    "pull": "download a model into the local hub cache",
    "evaluate": "score a model on held-out examples",
    "bench": "measure speed, beside this machine's ceilings and transformers",
    "doctor": "what was chosen on this machine, and why",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that takes options by their whole names, and names the nearest one."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation would change its meaning on the day a second option begins like it.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], known) if wrong else ""
        hint += nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")


def build() -> Parser:
    """The top parser; commands are told apart before their own parsers are built."""
    lines = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="dgemma",
        description="DiffusionGemma on your own machine.",
        epilog=f"commands:\n{lines}\n\n`dgemma COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dgemma {__version__}")
    # Optional only so that an unknown option is named before the command is missed.
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build()
    if not given:
        parser.print_help()
        return 2
    arguments = parser.parse_args(given[:1])
    if arguments.command is None:
        parser.error("no command; see `dgemma --help`")
    if arguments.command not in COMMANDS:
        parser.error(f"unknown command {arguments.command!r}{nearest(arguments.command, COMMANDS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpcore", "huggingface_hub", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    module = import_module(f"dgemma.cli.{arguments.command}")
    own = Parser(prog=f"dgemma {arguments.command}", description=COMMANDS[arguments.command])
    module.configure(own)

    def run() -> int:
        parsed = own.parse_args(given[1:])
        parsed.command_line = shlex.join(["dgemma", *given])
        code: int = module.run(parsed)
        return code

    return ending(run)


def ending(run: Callable[[], int]) -> int:
    """The exit code of a command; an error becomes one message for people."""
    try:
        return run()
    except DGemmaError as error:
        print(f"dgemma: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
