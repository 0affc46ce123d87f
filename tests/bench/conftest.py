"""What the tests of `bench` share: a tiny random checkpoint, loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import bench.llama
import bench.offline
import bench.run
import bench.scale
import bench.serving
import bench.verdict
import bench.vocabulary
from dgemma.bench import machine
from dgemma.bench.make import make
from dgemma.bench.shapes import shape
from dgemma.llm import LLM, load
from tests.support.commands import Ran, run_command

FRAMED = {
    "offline": bench.offline,
    "scale": bench.scale,
    "serving": bench.serving,
    "verdict": bench.verdict,
    "vocabulary": bench.vocabulary,
}
"""Programs that share the frame of `bench.run`."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape `tiny` in several shards."""
    return make(shape("tiny"), tmp_path_factory.mktemp("bench") / "tiny", max_shard_bytes=40_000)


@pytest.fixture(scope="session")
def llm(tiny: Path) -> LLM:
    """It loaded."""
    return load(tiny, device="cpu")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning depends on what else runs on the machine."""
    monkeypatch.setattr(machine, "load", lambda: 0.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `dgemma bench` or `python -m bench.NAME`: exit code, standard output and error."""

    def go(*words: str) -> Ran:
        name = words[0] if words else ""
        if name in FRAMED:
            program = FRAMED[name]
            main = partial(
                bench.run.main, name, program.__doc__, program.configure, program.measure
            )
            return run_command(words[1:], capsys, main)
        if name == "llama":
            return run_command(words[1:], capsys, bench.llama.main)
        return run_command(["bench", *words], capsys)

    return go
