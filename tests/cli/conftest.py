"""Small tensors on one thread: with more, a busy machine spends its time waiting for threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.support.commands import Ran, run_command


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """One thread for the tests of this folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process: exit code, standard output, standard error."""
    return lambda *words: run_command(words, capsys)
