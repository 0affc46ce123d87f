"""Help texts, and options as they are spelled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

from dgemma.cli import main as cli
from tests.support.commands import Ran


def test_the_help_of_edit_says_what_nano_cannot(run: Callable[..., Ran]) -> None:
    """A newcomer's file that is replaced by nonsense, without a word before it."""
    assert "nano never learned to edit" in run("edit", "--help")[1]


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help(command: str, run: Callable[..., Ran]) -> None:
    """A help text with a stray percent sign raises."""
    code, out, err = run(*([command] if command else []), "--help")
    assert (code, err) == (0, "") and "usage: dgemma" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_abbreviations(command: str) -> None:
    """`--max-t` means `--max-tokens` today and is ambiguous tomorrow: scripts would break."""
    parser = cli.Parser(prog="dgemma")
    import_module(f"dgemma.cli.{command}").configure(parser)
    options = [name for action in parser._actions for name in action.option_strings]
    needed = ["x" for action in parser._actions if not action.option_strings]
    usual, _ = parser.parse_known_args(needed)
    for short in [name[:-1] for name in options if len(name) > 3 and name[:-1] not in options]:
        assert parser.parse_known_args([*needed, short]) == (usual, [short])


def test_no_command(run: Callable[..., Ran]) -> None:
    """`dgemma` alone shows how to use it."""
    code, out, _ = run()
    assert code == 2 and "commands:" in out and "try: dgemma demo, dgemma chat" in out


@pytest.mark.process
def test_help_is_quick() -> None:
    """`dgemma --help` waits for torch to be imported."""
    code = "import sys, dgemma.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
