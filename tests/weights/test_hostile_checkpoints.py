"""Thousands of broken checkpoints, each by a number: one clear error or a model, never a crash."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hostile_checkpoints import break_checkpoint, make_tiny
from tests.support.hostile_packed import LAYOUTS, break_packed, make_packed, model_in

pytestmark = pytest.mark.process

MEBIBYTES = 1500
"""What reading one may take beyond the libraries themselves."""
SECONDS = 30
"""After which a reader counts as stuck: far above what any takes, as machines may be busy."""
LINES, CHARACTERS = 50, 20_000
"""Of a message."""


class Reader:
    """The process of `checkpoint_reader`, started again after it died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0

    def ask(self, directory: Path) -> dict[str, str]:
        """What it says of a directory."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.checkpoint_reader", str(MEBIBYTES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.started += 1
            assert self._answer(120)["outcome"] == "ready"
        assert self.process.stdin is not None
        self.process.stdin.write(f"{directory}\n".encode())
        self.process.stdin.flush()
        return self._answer(SECONDS)

    def _answer(self, seconds: float) -> dict[str, str]:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if line:
            found: dict[str, str] = json.loads(line)
            return found
        self.end()
        return {"outcome": "crashed" if ready else "stuck", "text": ""}

    def end(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """One for all."""
    found = Reader()
    yield found
    found.end()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that is broken."""
    directory = tmp_path_factory.mktemp("tiny") / "whole"
    make_tiny(directory)
    return directory


def fault_of(answer: dict[str, str]) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer["outcome"] not in ("loaded", "refused"):
        return f"{answer['outcome']} {answer['text']}"
    text = answer["text"]
    if len(text) > CHARACTERS or text.count("\n") >= LINES:
        return f"a message of {len(text)} characters: {text[:200]!a}"
    steering = [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    return f"a message that steers the terminal: {text[:200]!a}" if steering else ""


def test_the_whole_one_loads(reader: Reader, tiny: Path) -> None:
    """Everything is refused: the test below would hold for a loader that reads nothing."""
    assert reader.ask(tiny) == {"outcome": "loaded", "text": ""}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each layout."""
    directory = tmp_path_factory.mktemp("packed")
    make_packed(directory)
    return directory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_whole_layout_loads(reader: Reader, packed: Path, layout: str) -> None:
    """As above, for packed weights and GGUF files."""
    assert reader.ask(model_in(packed / layout)) == {"outcome": "loaded", "text": ""}


def run(
    reader: Reader, broken: Path, cases: int, break_one: Callable[[int], str], about: str,
    record: Callable[..., None],
) -> None:  # fmt: skip
    """Break and read, number by number; the first is that of the environment."""
    first = int(os.environ.get("FIRST_CHECKPOINT", 0))
    outcomes, faults = Counter[str](), []
    for number in range(first, first + cases):
        done = break_one(number)
        answer = reader.ask(model_in(broken))
        outcomes[answer["outcome"]] += 1
        if fault := fault_of(answer):
            faults.append(f"FIRST_CHECKPOINT={number} ({done}): {fault}")
        shutil.rmtree(broken)
    record(f"hostile {about}: refused with one error", outcomes["refused"])
    record(f"hostile {about}: harmless, loaded", outcomes["loaded"])
    record(f"hostile {about}: crashes, hangs and tracebacks", len(faults), "0")
    assert not faults, "\n".join(faults)
    assert outcomes["refused"] > cases / 2, outcomes


def test_broken_checkpoints(
    reader: Reader, tiny: Path, tmp_path: Path, count: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:  # fmt: skip
    """A crash, a hang, a traceback, or gigabytes of memory, because of what a file holds."""
    broken = tmp_path / "broken"
    cases = count(60, 2000)
    run(reader, broken, cases, lambda n: break_checkpoint(tiny, broken, n), "checkpoints", record)


def test_broken_packed_checkpoints(
    reader: Reader, packed: Path, tmp_path: Path, count: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:  # fmt: skip
    """The same of packed weights (integers, fp8, fp4, nf4, MLX) and of GGUF files."""
    broken = tmp_path / "broken"
    cases = count(6, 200) * len(LAYOUTS)
    run(reader, broken, cases, lambda n: break_packed(packed, broken, n), "packed files", record)
