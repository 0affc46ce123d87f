"""A command line that runs in the tests' own process. `tests/cli/conftest.py` has its fixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dgemma.cli import main as cli

Ran = tuple[int, str, str]
"""Exit code, standard output, standard error."""


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
