"""`python -m bench.serving`: a server under load, as its clients see it over a socket.

    closed loop   so many callers, each of whom waits for an answer before the next question
    open loop     requests that arrive at random, so many a second, whether answers come or not

Starts `dgemma serve`, or drives any server that speaks OpenAI's chat API.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from bench.chart import Lines
from bench.client import closed, open_loop, opened
from bench.run import Say, main, rates, sizes
from bench.stats import percentile
from bench.traffic import DRAFTS, Drafts, TrafficMix, TrafficSample, arrivals, conversations
from dgemma.bench.drive import Where
from dgemma.bench.report import Cell, Report, Table
from dgemma.cli.options import positive
from dgemma.errors import EngineError, InvalidRequest
from dgemma.weights.files import load_config

NOTES = (
    "Each request is another one: held-out examples of nano's tasks (all but tools), or the given "
    "file's conversations; most tokens of the answer are drawn from --lengths; all streamed. Kinds "
    "and lengths are the same, in the same order, under every load.",
    "Closed loop: so many callers, each waits for its answer. Open loop: Poisson arrivals; times "
    "count from the arrival that was due, so a client that lags makes them longer.",
    "First frame: the first draft, if the server sends drafts. First text: the first word, "
    "thought or call that stays. Tokens are those of the server's `usage`.",
    "Rates are of requests that were answered, from the first one's beginning to the last one's "
    "end. The 99th percentile of fewer than a hundred answers is nearly the slowest of them. The "
    "client runs on the machine named here; so does a server of its own, and they share its cores.",
)
PERCENTS = (50, 90, 99)
DRAWN = PERCENTS[:2]
"""The percentiles in the charts; the last one is nearly the slowest answer."""
TIMES = {"frame_s": "first frame", "text_s": "first text", "end_s": "end"}
WARM_UP = 2
"""Requests at the beginning that are not counted."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to be sent: by so many callers, or so many a second; the other one is None."""

    concurrency: int | None
    rate_per_s: float | None

    @property
    def name(self) -> str:
        """For people."""
        if self.rate_per_s is None:
            return f"{self.concurrency} at once"
        return f"{self.rate_per_s:g} a second"


@dataclass(frozen=True)
class LoadPoint:
    """The samples of a load."""

    load: Load
    samples: Sequence[TrafficSample]

    def answered(self) -> list[TrafficSample]:
        """Requests whose stream came to its end."""
        return [sample for sample in self.samples if not sample.failure]

    @property
    def seconds(self) -> float:
        """From the first request's beginning to the last answer's end; NaN without answers."""
        ends = [s.due_s + s.end_s for s in self.answered() if s.end_s is not None]
        return max(ends) - min(s.due_s for s in self.samples) if ends else math.nan

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return len(self.answered()) / self.seconds

    @property
    def completion_tokens_per_s(self) -> float:
        """Completion tokens a second; NaN if the server does not count them."""
        counts = [sample.completion_tokens for sample in self.answered()]
        if None in counts or not counts:
            return math.nan
        return sum(count or 0 for count in counts) / self.seconds

    def ms(self, name: str, percent: float) -> float:
        """A percentile of one of `TIMES`, milliseconds; NaN if no answer got there."""
        times = [getattr(sample, name) for sample in self.answered()]
        return 1000 * percentile([time for time in times if time is not None], percent)

    @property
    def waits_ms(self) -> dict[str, float]:
        """Every percentile of every time."""
        return {
            f"{name.removesuffix('_s')}_p{percent}": self.ms(name, percent)
            for name in TIMES for percent in PERCENTS
        }  # fmt: skip

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


def base_url(text: str) -> str:
    """An option's value: the address of a server, without /v1 and without a password."""
    parts = urlsplit(text)
    if parts.username or parts.password or parts.query:
        raise argparse.ArgumentTypeError("give the address alone; --key-env names a key's variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"write it like http://host:port, not {text!r}")
    return text.rstrip("/").removesuffix("/v1")


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
        sys.executable, "-m", "dgemma", "serve", model, "--port", "0", "--served-name", "it",
    ]  # fmt: skip
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
    """The address of a server, once it prints it."""
    for line in said:
        if found := re.search(r"http://\S+:\d+", line):
            return found.group()
    log.seek(0)
    raise EngineError(f"the server did not start: {log.read().strip()[-500:]}")


def drive(
    target: Target, loads: Sequence[Load], mix: TrafficMix, options: argparse.Namespace, say: Say
) -> list[LoadPoint]:
    """Put a server under one load after the other.

    Raises:
        InvalidRequest: there is no such server or model.
    """
    drafts: Drafts = options.drafts or ("text" if options.url is None else "off")

    async def all_of_them() -> list[LoadPoint]:
        points = []
        async with opened(target.url, target.key, target.model, drafts, options.timeout_s) as send:
            await closed(send, mix.take(WARM_UP), 1)
            for load in loads:
                work = mix.take(options.requests)
                if load.rate_per_s is None:
                    samples = await closed(send, work, load.concurrency or 1)
                else:
                    due = arrivals(load.rate_per_s, options.requests, options.seed)
                    samples = await open_loop(send, work, due)
                points.append(LoadPoint(load, samples))
                failed = sum(points[-1].failures.values())
                say(f"{load.name}: {points[-1].requests_per_s:.3g} answers/s, {failed} failed")
        return points

    return asyncio.run(all_of_them())


def tables(points: Sequence[LoadPoint]) -> list[Table]:
    """The results for people."""
    first: list[list[Cell]] = [
        [p.load.name, len(p.samples), sum(p.failures.values()), p.requests_per_s,
         p.completion_tokens_per_s]
        for p in points
    ]  # fmt: skip
    waits: list[list[Cell]] = [[p.load.name, *p.waits_ms.values()] for p in points]
    waiting = [f"{what}, {percent} %" for what in TIMES.values() for percent in PERCENTS]
    failed: list[list[Cell]] = [
        [p.load.name, how, count] for p in points for how, count in p.failures.items()
    ]
    head = ("load", "requests", "failed", "answers per second", "completion tokens per second")
    title = "Waiting, ms, below which so many in a hundred answers were"
    out = [Table("Throughput", head, first), Table(title, ("load", *waiting), waits)]
    return [*out, Table("What failed", ("load", "how", "requests"), failed)] if failed else out


def charts(points: Sequence[LoadPoint]) -> list[Lines]:
    """Throughput and waiting against the load, closed and open loops apart."""
    out: list[Lines] = []
    for is_open, axis in ((False, "requests at once"), (True, "requests a second, at random")):
        own = [p for p in points if (p.load.rate_per_s is not None) == is_open]
        if not own:
            continue
        x = [float(p.load.rate_per_s or p.load.concurrency or 0) for p in own]

        def series(y: Sequence[float], x: Sequence[float] = x) -> list[tuple[float, float]]:
            return [pair for pair in zip(x, y, strict=True) if math.isfinite(pair[1])]

        rate = {"completion tokens": series([p.completion_tokens_per_s for p in own])}
        waiting = {
            f"{what}, {percent} %": series([p.ms(name, percent) for p in own])
            for name, what in TIMES.items() for percent in DRAWN
        }  # fmt: skip
        out.append(Lines("Throughput", axis, "completion tokens per second", rate, {}))
        shown = {name: points for name, points in waiting.items() if points}
        out.append(Lines("Waiting", axis, "milliseconds", shown, {}))
    return out


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    add = parser.add_argument
    own = "a server that speaks OpenAI's chat API; without it `dgemma serve` is started"
    add("--url", type=base_url, help=own)
    add("--key-env", help="environment variable with that server's API key")
    add("--concurrency", type=sizes, help="requests at once (1,2,4,8 without --rates)")
    add("--rates", type=rates, default=[], help="requests a second that arrive at random")
    add("--requests", type=positive, default=64, help="requests under each load (64)")
    lengths = "16,64,128"
    add("--lengths", type=sizes, default=lengths, help=f"most tokens of an answer ({lengths})")
    lines = 'conversations to send, a line each: {"messages": [...]} or {"prompt": "..."}'
    add("--prompts-file", type=Path, help=lines)
    add("--drafts", choices=DRAFTS, help="text for our own server, off with --url")
    add("--seed", type=int, default=1, help="of prompts, lengths and arrivals (1)")
    add("--timeout-s", type=positive, default=300, help="a request has failed after this (300)")


def target_of(where: Where, options: argparse.Namespace) -> Target | None:
    """The server that the options name; None: start one.

    Raises:
        InvalidRequest: options of the other way, or a key that is not set.
    """
    key = options.key_env
    if options.url is None:
        if key is not None:
            raise InvalidRequest("--key-env belongs to --url; a server started here has its own")
        return None
    if (where.device, where.dtype, where.threads, where.strict) != ("auto", "auto", None, True):
        raise InvalidRequest("--url: its device, dtype and threads are chosen where it is started")
    if key is not None and not os.environ.get(key):
        raise InvalidRequest(f"--key-env {key}: this environment variable is not set")
    return Target(options.url, os.environ[key] if key else None, where.model)


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """All loads, on a server of our own or another one."""
    at_once = options.concurrency or ([] if options.rates else [1, 2, 4, 8])
    loads = [Load(number, None) for number in at_once]
    loads += [Load(None, rate) for rate in options.rates]
    file = options.prompts_file
    mix = TrafficMix(options.seed, options.lengths, conversations(file) if file else ())
    target = target_of(where, options)
    if target is not None:
        points = drive(target, loads, mix, options, say)
        about = {"model": where.model, "server": target.url}
    else:
        directory, device, dtype = where.resolved()
        words = ["--device", where.device, "--dtype", where.dtype]
        words += ["--attention", where.attention, "--cache-dtype", where.cache_dtype]
        words += [] if where.strict else ["--no-strict"]
        with serving(str(directory), words, where.threads) as target:
            points = drive(target, loads, mix, options, say)
        about = where.subject(load_config(directory, where.strict), device, dtype)
    title = "A server under load"
    report = Report(title, where.command, about, tables(points), {"loads": points}, NOTES)
    return report, charts(points)


if __name__ == "__main__":
    sys.exit(main("serving", __doc__, configure, measure))
