"""A server as a process of its own, for tests that want a real socket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY = "sk-the-test-key"
HEADERS = {"authorization": f"Bearer {KEY}"}


@dataclass(frozen=True, slots=True)
class Live:
    """A running server.

    Attributes:
        url: its address; `said`: what it printed when it was ready.
        log: the file that its log goes to.
    """

    process: subprocess.Popen[str]
    url: str
    said: str
    log: Path


def hear_interrupts() -> None:
    """A shell's background job ignores interrupts, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(*options: str, threads: int = 1, **keys: str) -> Iterator[Live]:
    """`dgemma serve nano` with some options, killed in the end.

    Args:
        threads: of torch; 0: as many as it takes by itself.
        keys: DGEMMA_API_KEYS and DGEMMA_ADMIN_KEYS; none: one key for all.
    """
    given = {"DGEMMA_API_KEYS": KEY, "DGEMMA_ADMIN_KEYS": KEY} | keys
    given |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "dgemma.cli.main", "serve", "nano", "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **given},
                preexec_fn=hear_interrupts,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            said = "".join(process.stdout.readline() for _ in range(4))
            found = re.search(r"http://\S+:\d+", said)
            assert found, said + log.read_text()
            yield Live(process, found.group(), said, log)
        finally:
            process.kill()
            process.communicate()


def check_events(text: str) -> None:
    """A stream is whole events, each with JSON, and its last says that it was the last."""
    *blocks, rest = text.split("\n\n")
    lines = [line for block in blocks for line in block.split("\n") if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    assert rest == "" and data, text
    found = [json.loads(one) for one in data if one != "[DONE]"]
    last = found[-1]
    emitted = last.get("type") in ("message_stop", "error") or "error" in last
    assert emitted or data[-1] == "[DONE]" or last.get("stop") is True, text
