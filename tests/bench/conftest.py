"""What the tests of `bench` share: a tiny random checkpoint, loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dgemma.bench import machine
from dgemma.bench.make import make
from dgemma.bench.shapes import shape
from dgemma.cli import main as cli
from dgemma.llm import LLM, load

Ran = tuple[int, str, str]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape `tiny` in several shards."""
    return make(shape("tiny"), tmp_path_factory.mktemp("bench") / "tiny", max_shard_bytes=40_000)


@pytest.fixture(scope="session")
def llm(tiny: Path) -> LLM:
    """It loaded."""
    return load(tiny, device="cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """`--threads` is for the process: no later test inherits it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning depends on what else runs on the machine."""
    monkeypatch.setattr(machine, "load", lambda: 0.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `dgemma bench` in this process: exit code, standard output, standard error."""

    def go(*words: str) -> Ran:
        capsys.readouterr()
        try:
            code = cli.main(["bench", *words])
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return go
