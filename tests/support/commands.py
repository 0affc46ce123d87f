"""A command line that runs in the tests' own process. `tests/cli/conftest.py` has its fixture."""

from __future__ import annotations

import pytest

from dgemma.cli import main as cli

Ran = tuple[int, str, str]
"""Exit code, standard output, standard error."""


def run_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Ran:
    """What `dgemma` with these words leaves."""
    capsys.readouterr()
    try:
        code = cli.main(list(words))
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err
