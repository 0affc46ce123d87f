"""Command lines that run in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.commands import Ran, run_command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process: exit code, standard output, standard error."""
    return lambda *words: run_command(words, capsys)
