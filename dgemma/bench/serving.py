"""`bench serving`: a server under load, as its clients see it over a socket.

    closed loop   so many callers, each of whom waits for an answer before the next question
    open loop     requests that arrive at random, so many a second, whether answers come or not

Starts `dgemma serve`, or drives any server that speaks OpenAI's chat API.
Knows loads and what is told of them. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from dgemma.bench.chart import Lines
from dgemma.bench.report import Cell, Table
from dgemma.bench.stats import percentile
from dgemma.bench.traffic import Drafts, TrafficMix, TrafficSample, arrivals
from dgemma.errors import EngineError, InvalidRequest, MissingExtra

NOTES = (
    "Each request is another one: held-out examples of nano's tasks (all but tools), or the given "
    "file's conversations; most tokens of the answer are drawn from --lengths; all streamed. Kinds "
    "and lengths are the same, in the same order, under every load.",
    "Closed loop: so many callers, each waits for its answer. Open loop: Poisson arrivals; times "
    "count from the arrival that was due, so a client that lags makes them longer.",
    "First frame: the first draft, where the server sends drafts. First text: the first word, "
    "thought or call that stays. Tokens are those of the server's `usage`.",
    "Rates are of requests that were answered, from the first one's beginning to the last one's "
    "end. The 99th percentile of fewer than a hundred answers is nearly the slowest of them. The "
    "client runs on the machine named here; so does a server of its own, and they share its cores.",
)
PERCENTS = (50, 90, 99)
DRAWN = PERCENTS[:2]
"""What the chart shows of them; the last is nearly the slowest answer."""
TIMES = {"frame_s": "first frame", "text_s": "first text", "end_s": "end"}
WARM_UP = 2
"""Requests at the beginning that are not counted."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to be sent: by so many callers, or so many a second; the other one is None."""

    concurrency: int | None
    rate: float | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"


@dataclass(frozen=True)
class LoadPoint:
    """What a load met with."""

    load: Load
    samples: Sequence[TrafficSample]

    @property
    def answered(self) -> list[TrafficSample]:
        """Requests whose stream came to its end."""
        return [sample for sample in self.samples if not sample.failure]

    @property
    def seconds(self) -> float:
        """From the first request's beginning to the last answer's end; NaN without answers."""
        ends = [s.due_s + s.end_s for s in self.answered if s.end_s is not None]
        return max(ends) - min(s.due_s for s in self.samples) if ends else math.nan

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return len(self.answered) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second; NaN where the server does not count them."""
        counts = [sample.completion_tokens for sample in self.answered]
        if None in counts or not counts:
            return math.nan
        return sum(count or 0 for count in counts) / self.seconds

    def ms(self, name: str, percent: float) -> float:
        """A percentile of one of `TIMES`, milliseconds; NaN where it never came to that."""
        times = [getattr(sample, name) for sample in self.answered]
        return 1000 * percentile([time for time in times if time is not None], percent)

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed, by how."""
        return dict(Counter(s.failure for s in self.samples if s.failure).most_common())


@dataclass(frozen=True, slots=True)
class Target:
    """A server to be driven: its address without /v1, a key, the model's name there."""

    url: str
    key: str | None
    model: str


def base_url(url: str) -> str:
    """The address of a server, without /v1.

    Raises:
        InvalidRequest: it is none, or holds a password, which the report would show.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"--url {url!r}: write it like http://host:port")
    if parts.username or parts.password or parts.query:
        raise InvalidRequest("--url holds more than an address; name a key's variable by --key-env")
    return url.rstrip("/").removesuffix("/v1")


def key_from(name: str | None, environment: Mapping[str, str]) -> str | None:
    """An API key out of the environment.

    Raises:
        InvalidRequest: there is no such variable.
    """
    if name is None:
        return None
    if not environment.get(name):
        raise InvalidRequest(f"--key-env {name}: this environment variable is not set")
    return environment[name]


def rates(text: str | None) -> list[float]:
    """Requests a second, separated by commas, in ascending order.

    Raises:
        InvalidRequest: something else.
    """
    try:
        found = sorted({float(word) for word in text.split(",")} if text else ())
    except ValueError:
        found = [0.0]
    if not all(0 < rate < math.inf for rate in found):
        raise InvalidRequest(f"--rates {text!r}: give numbers above 0 with commas between them")
    return found


@contextmanager
def serving(model: str, options: Sequence[str], threads: int | None) -> Iterator[Target]:
    """`dgemma serve` on a free port, as a process of its own, with a key of its own.

    Raises:
        EngineError: it does not start; the message ends with its last words.
    """
    key = secrets.token_hex(16)
    environment = {**os.environ, "DGEMMA_API_KEYS": key}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    words = [
        sys.executable,
        "-m",
        "dgemma.cli.main",
        "serve",
        model,
        "--port",
        "0",
        "--served-name",
        "it",
    ]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [*words, *options], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            assert child.stdout is not None
            yield Target(_address(child.stdout, log), key, "it")
        finally:
            child.terminate()
            try:
                child.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()


def _address(said: IO[str], log: IO[str]) -> str:
    """Where a server listens, once it says so."""
    for line in said:
        if found := re.search(r"http://\S+:\d+", line):
            return found.group()
    log.seek(0)
    raise EngineError(f"the server did not start: {log.read().strip()[-500:]}")


def drive(
    target: Target, loads: Sequence[Load], mix: TrafficMix, *, count: int, drafts: Drafts,
    seed: int, timeout_s: float, say: Callable[[str], None],
) -> list[LoadPoint]:  # fmt: skip
    """Put a server under one load after the other, `count` requests each.

    Raises:
        MissingExtra: httpx is not installed.
        InvalidRequest: there is no such server or model.
    """
    try:
        from dgemma.bench.client import closed, open_loop, opened
    except ModuleNotFoundError as error:
        raise MissingExtra("driving a server needs httpx: pip install 'dgemma[hub]'") from error

    async def all_of_them() -> list[LoadPoint]:
        points = []
        async with opened(target.url, target.key, target.model, drafts, timeout_s) as send:
            await closed(send, mix.take(WARM_UP), 1)
            for load in loads:
                work = mix.take(count)
                if load.rate is None:
                    samples = await closed(send, work, load.concurrency or 1)
                else:
                    samples = await open_loop(send, work, arrivals(load.rate, count, seed))
                points.append(LoadPoint(load, samples))
                failed = sum(points[-1].failures.values())
                say(f"{load.name}: {points[-1].requests_per_s:.3g} answers/s, {failed} failed")
        return points

    return asyncio.run(all_of_them())


def values(points: Sequence[LoadPoint]) -> dict[str, Any]:
    """Every number, for programs; nothing of what was asked or answered."""
    return {
        "loads": [
            {
                "concurrency": point.load.concurrency,
                "rate_per_s": point.load.rate,
                "requests": len(point.samples),
                "failures": point.failures,
                "requests_per_s": point.requests_per_s,
                "completion_tokens_per_s": point.tokens_per_s,
                **{
                    f"{name.removesuffix('_s')}_p{percent}_ms": point.ms(name, percent)
                    for name in TIMES for percent in PERCENTS
                },
                "samples": [asdict(sample) for sample in point.samples],
            }
            for point in points
        ]
    }  # fmt: skip


def tables(points: Sequence[LoadPoint]) -> tuple[list[Table], list[Lines]]:
    """The results for people."""
    first = Table(
        "Throughput",
        ("load", "requests", "failed", "answers per second", "completion tokens per second"),
        [
            [p.load.name, len(p.samples), sum(p.failures.values()), p.requests_per_s,
             p.tokens_per_s]
            for p in points
        ],
    )  # fmt: skip
    head = [f"{what}, {percent} %" for what in TIMES.values() for percent in PERCENTS]
    waits: list[list[Cell]] = [
        [p.load.name, *(p.ms(name, percent) for name in TIMES for percent in PERCENTS)]
        for p in points
    ]
    second = Table(
        "Waiting, ms, below which so many in a hundred answers were",
        ["load", *head],
        waits,
    )
    rows: list[list[Cell]] = [
        [p.load.name, how, count] for p in points for how, count in p.failures.items()
    ]
    third = [Table("What failed", ("load", "how", "requests"), rows)] if rows else []
    return [first, second, *third], charts(points)


def charts(points: Sequence[LoadPoint]) -> list[Lines]:
    """Throughput and waiting against the load, closed and open loops apart."""
    out = []
    for is_open, axis in ((False, "requests at once"), (True, "requests a second, at random")):
        own = [p for p in points if (p.load.rate is not None) == is_open]
        if not own:
            continue
        x = [float(p.load.rate or p.load.concurrency or 0) for p in own]

        def series(y: Sequence[float], x: Sequence[float] = x) -> list[tuple[float, float]]:
            return [pair for pair in zip(x, y, strict=True) if math.isfinite(pair[1])]

        rate = {"completion tokens": series([p.tokens_per_s for p in own])}
        waiting = {
            f"{what}, {percent} %": series([p.ms(name, percent) for p in own])
            for name, what in TIMES.items() for percent in DRAWN
        }  # fmt: skip
        out.append(Lines("Throughput", axis, "completion tokens per second", rate, {}))
        shown = {name: points for name, points in waiting.items() if points}
        out.append(Lines("Waiting", axis, "milliseconds", shown, {}))
    return out
