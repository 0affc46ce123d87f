"""A server as a process of its own, and what it holds: memory, descriptors, log, requests."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.attack.wire import ATTACKER, Caller
from tests.support.live import running

GAUGES = ("dgemma_http_open_requests ", "dgemma_running ", "dgemma_waiting ")


@dataclass(frozen=True, slots=True)
class Held:
    """What a server holds at a moment.

    Attributes:
        memory_mb: resident, with that of its child processes.
        descriptors: open files and sockets.
        requests: open, running and waiting; -1 if it does not say.
        log_bytes: size of its log.
    """

    memory_mb: float
    descriptors: int
    requests: int
    log_bytes: int


class Target:
    """A running server with the keys of an attacker and of a neighbour."""

    def __init__(
        self, process: subprocess.Popen[str], port: int, keys: tuple[str, str, str], log: Path
    ) -> None:
        self.process = process
        self.log = log
        self.attacker = Caller(port, keys[0], ATTACKER)
        self.neighbour = Caller(port, keys[1])
        self._admin = Caller(port, keys[2])

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def held(self) -> Held:
        """What the server holds now."""
        status, reply = self._admin.call("GET", "/metrics", timeout_s=10)
        requests = -1
        if status == "200":
            lines = reply.decode().splitlines()
            requests = sum(
                round(float(line.rpartition(" ")[2])) for line in lines if line.startswith(GAUGES)
            )
        pids = [self.process.pid, *children(self.process.pid)]
        files = Path(f"/proc/{self.process.pid}/fd")
        return Held(
            sum(map(resident_mb, pids)),
            len(list(files.iterdir())) if files.exists() else 0,
            requests,
            self.log.stat().st_size,
        )

    def busy(self, seconds: float = 0.5) -> float:
        """Share of a core that the process and its children use over a while."""
        pids = [self.process.pid, *children(self.process.pid)]
        before = sum(map(ticks, pids))
        time.sleep(seconds)
        used = sum(map(ticks, pids)) - before
        return used / os.sysconf("SC_CLK_TCK") / seconds


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def resident_mb(pid: int) -> float:
    """Resident memory; 0 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(match[1]) / 1024 if match else 0.0


def ticks(pid: int) -> int:
    """Clock ticks of processor time; 0 if there is no such process."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(words[11]) + int(words[12])


@contextmanager
def serving(*options: str) -> Iterator[Target]:
    """`dgemma serve nano` on the loopback address."""
    keys = (secrets.token_hex(16), secrets.token_hex(16), secrets.token_hex(16))
    given = {"DGEMMA_API_KEYS": ",".join(keys), "DGEMMA_ADMIN_KEYS": keys[2]}
    with running(*options, threads=0, **given) as live:
        port = urlsplit(live.url).port
        assert port is not None
        yield Target(live.process, port, keys, live.log)
