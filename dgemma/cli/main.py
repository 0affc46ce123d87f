"""`dgemma`: the parser, the dispatch, and the only place where errors are formatted for people.

Commands are modules with `configure(parser)` and `run(arguments) -> exit code`, imported when
called, so `dgemma --help` does not import torch. Exit codes: 0 success; 1 the command ran and its
result is negative, such as a failed check; 2 usage or other error; 130 interrupted;
143 `serve` was stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NoReturn

from dgemma import __version__
from dgemma.cli.progress import LogHandler
from dgemma.cli.wording import in_options
from dgemma.errors import DGemmaError, nearest

COMMANDS = {
    "generate": "answer a prompt, or continue raw text",
    "chat": "talk to a model and watch it write",
    "infill": "fill the holes of a text",
    "edit": "rewrite parts of a file in place",
    "decide": "answer questions about a text with probabilities",
    "serve": "serve a model over HTTP",
    "demo": "watch the bundled model solve a Sudoku, then answer a question",
    "info": "show sizes and memory of a model, before any weights are read",
    "check": "compare a model with transformers on this machine",
    "pull": "download a model, or some of its files, into the local hub cache",
    "list": "list the models in the local hub cache",
    "rm": "delete a model from the local hub cache",
    "calibrate": "fit a model's limits from its own answers",
    "quantize": "pack a model's weights into 8 or 4 bits",
    "convert": "write a model's 16-bit weights for other programs",
    "evaluate": "score a model on held-out examples",
    "bench": "measure speed, beside this machine's ceilings and transformers",
    "doctor": "show the device, dtype and kernels chosen on this machine, and why",
}
MEANT = {"gpu": "cuda", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Other words for a device or a dtype."""
TRY = "try: dgemma demo, dgemma chat"


class Parser(argparse.ArgumentParser):
    """An argument parser that takes options by their whole names, and names the nearest one."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation would change its meaning on the day a second option begins like it.
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        self._positionals.title = "arguments"
        self.words: Sequence[str] = ()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse; options may stand between the arguments, unless there is a `--`."""
        self.words = words
        places = [action for action in self._actions if not action.option_strings]
        names = [f"[{one.metavar}]" if one.nargs == "?" else str(one.metavar) for one in places]
        self.usage = " ".join([self.prog, *names, "[options]"])
        parse = self.parse_args if "--" in words else self.parse_intermixed_args
        found = parse(words)
        if "named" in found:
            then = (found.then or "model").lower()
            if getattr(found, then, "") is None:  # a single word is not the model
                setattr(found, then, found.model)
                found.model = None
            models = {found.model, found.named} - {None}
            if len(models) > 1:
                self.error(f"two models, {found.model!r} and {found.named!r}; name one")
            found.named = models.pop() if models else None
            found.model = found.named or "nano"
        return found

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], options) if wrong else ""
        if "unrecognized arguments" in message and not wrong and self.get_default("then"):
            hint = f"; a {self.get_default('then')} of several words goes in quotes"
        if choice:
            known = re.findall(r"[\w-]+", choice[2])
            hint = nearest(MEANT.get(choice[1], choice[1]), known)
        greedy = [a.option_strings[0] for a in self._actions if a.nargs == "+"]
        for option in set(greedy) & set(self.words) if "are required" in message else ():
            hint += f"; {option} takes all words after it, so write that first"
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")


def build() -> Parser:
    """The top parser; it knows the commands, not their options."""
    lines = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="dgemma",
        usage="dgemma COMMAND [options]",
        description=f"DiffusionGemma on your own machine.\n\n{TRY}",
        epilog=f"commands:\n{lines}\n\n`dgemma COMMAND --help` lists the options of a command.",
    )
    version = f"dgemma {__version__}"
    parser.add_argument("--version", "-V", action="version", version=version, help="show version")
    # Optional only so that an unknown option is named before the missing command.
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return ending(lambda: dispatch(given))


def dispatch(given: list[str]) -> int:
    """Run the command that these words name; returns its exit code."""
    parser = build()
    if not given:
        parser.print_help()
        return 2
    if given[0] == "help":
        given = [*given[1:2], "--help"]
    if given == ["version"]:
        given = ["--version"]
    arguments = parser.parse_args(given[:1])
    command = arguments.command
    if command is None:
        parser.error("no command; see `dgemma --help`")
    if command not in COMMANDS:
        parser.error(f"unknown command {command!r}{nearest(command, COMMANDS) or f'; {TRY}'}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
    for noisy in ("httpx", "httpcore", "huggingface_hub", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    options: dict[str, str] = {}

    def run() -> int:
        module = import_module(f"dgemma.cli.{command}")
        about = COMMANDS[command]
        own = Parser(prog=f"dgemma {command}", description=f"{about[0].upper()}{about[1:]}.")
        module.configure(own)
        options.update((a.dest, a.option_strings[0]) for a in own._actions if a.option_strings)
        parsed = own.parse(given[1:])
        parsed.command_line = shlex.join(["dgemma", *given])
        code: int = module.run(parsed)
        return code

    return ending(run, options)


def ending(run: Callable[[], int], options: Mapping[str, str] = MappingProxyType({})) -> int:
    """The exit code of a command; an error becomes one message for people.

    Args:
        options: those of the command, by the names that the library has for them.
    """
    try:
        return run()
    except DGemmaError as error:
        print(f"dgemma: error: {in_options(str(error), options)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
