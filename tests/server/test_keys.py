"""Several API keys on one server: what one key can do to another, and learn of it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from dgemma.server.auth import Keys
from tests.support.client import QUESTION, serve
from tests.support.live import HEADERS, Live, running
from tests.support.nano import nano

CHAT = "/v1/chat/completions"
OTHER = "sk-another-key"
SHORT: dict[str, Any] = {"messages": QUESTION, "max_tokens": 32}
FIRST = re.compile(r'"content":"[^"]|"finish_reason":"')
"""A chunk with the first text, or the end of an answer without any."""
QUICK: dict[str, Any] = {"max_tokens": 1, "seed": 1, "diffusion": {"max_steps": 1}}


@contextmanager
def two_keys(folder: Path, *options: str) -> Iterator[tuple[Live, httpx.Client, httpx.Client]]:
    """A server, and clients of two keys."""
    file = folder / "keys"
    file.write_text(OTHER + "\n")
    with running("--api-key-file", str(file), *options) as live:
        first = httpx.Client(base_url=live.url, headers=HEADERS, timeout=600)
        second = httpx.Client(base_url=live.url, headers={"x-api-key": OTHER}, timeout=600)
        with first, second:
            yield live, first, second


def secret(draw: random.Random) -> list[dict[str, str]]:
    """A conversation of about a thousand tokens that nobody else has sent."""
    numbers = " ".join(str(draw.randrange(10**6)) for _ in range(140))
    return [{"role": "user", "content": f"{draw.randrange(10**9)} {numbers}"}]


def one_digit_off(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A guess that is wrong at the beginning."""
    [message] = messages
    first = (int(message["content"][0]) + 1) % 10
    return [message | {"content": str(first) + message["content"][1:]}]


@pytest.mark.model
@pytest.mark.fault("R H2")
def test_a_right_guess_costs_what_a_wrong_one_does(count: Callable[[int, int], int]) -> None:
    """Catches a key that learns from hits, or from the work of an answer, what another key sent."""
    draw, seen = random.Random(1), []
    client = serve(keys=Keys.of([OTHER, "sk-the-first-key"]))
    for number in range(count(4, 40)):
        asked = secret(draw)
        own = client.post(CHAT, QUICK | {"messages": asked}, headers={"x-api-key": OTHER})
        assert own.status_code == 200
        guess = one_digit_off(asked) if number % 2 else asked
        before = nano().counters()
        reply = client.post(
            CHAT, QUICK | {"messages": guess}, headers={"x-api-key": "sk-the-first-key"}
        )
        after = nano().counters()
        length = reply.json()["usage"]["prompt_tokens"]
        assert after.encoded_tokens - before.encoded_tokens == length > 900
        seen.append((
            after.prefix_hit_tokens - before.prefix_hit_tokens, after.passes - before.passes,
            set(reply.json()), set(reply.json()["usage"]),
        ))  # fmt: skip
    assert all(one == seen[0] for one in seen) and seen[0][0] == 0


def told(folder: Path, probes: int, record: Callable[..., None], *options: str) -> float:
    """How likely a right guess of another key's prompt has its first text before a wrong one."""
    draw, times = random.Random(2), {True: list[float](), False: list[float]()}
    with two_keys(folder, *options) as (_, own, spy):
        for number in range(-1, probes):  # the first request is slower
            asked, right = secret(draw), draw.random() < 0.5
            assert own.post(CHAT, json=QUICK | {"messages": asked}).status_code == 200
            guess = QUICK | {"messages": asked if right else one_digit_off(asked), "stream": True}
            began = time.perf_counter()
            with spy.stream("POST", CHAT, json=guess) as reply:
                next(line for line in reply.iter_lines() if FIRST.search(line))
                seconds = time.perf_counter() - began
            if number >= 0:
                times[right].append(seconds)
    beside = " ".join(["first text, ms,", *options])
    for right, name in ((True, "right"), (False, "wrong")):
        for part, value in zip(("p10", "p50", "p90"), spread(times[right]), strict=True):
            record(f"{beside} after a {name} guess of another key's prompt, {part}", value)
    faster = [float(a < b) for a in times[True] for b in times[False]]
    return sum(faster) / len(faster)


@pytest.mark.full
@pytest.mark.process
def test_a_guess_is_not_timed(tmp_path: Path, record: Callable[..., None]) -> None:
    """Catches a time to the first text that tells a right guess from a wrong one: 200 probes."""
    found = told(tmp_path, 200, record)
    record("probability that a right guess is faster than a wrong one", found, "0.3 to 0.7")
    assert 0.3 < found < 0.7, "chance alone stays within five standard errors, 0.2"
    shared = told(tmp_path, 40, record, "--share-prefix-cache")
    record("the same with --share-prefix-cache", shared, "> 0.8")
    assert shared > 0.8, "the measurement itself would tell nothing"


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """The tenth, fiftieth and ninetieth percentile in milliseconds."""
    ordered = sorted(seconds)
    low, middle, high = (1000 * ordered[len(ordered) * part // 10] for part in (1, 5, 9))
    return low, middle, high


def answer_s(client: httpx.Client, seed: int) -> float:
    """Seconds that a short chat takes."""
    began = time.perf_counter()
    reply = client.post(CHAT, json=SHORT | {"seed": seed})
    assert reply.status_code == 200, reply.text
    return time.perf_counter() - began


def texts(client: httpx.Client, seed: int) -> list[str]:
    """Sixteen answers of two canvases."""
    body = {"messages": QUESTION, "n": 16, "seed": seed, "diffusion": {"max_steps": 4}}
    body |= {"min_tokens": 150, "max_tokens": 150}
    choices = client.post(CHAT, json=body).json()["choices"]
    return [choice["message"]["content"] for choice in choices]


@pytest.mark.full
@pytest.mark.process
@pytest.mark.fault("R H1")
def test_a_chat_beside_forty_eight_long_answers(
    tmp_path: Path, record: Callable[..., None]
) -> None:
    """Catches a key that keeps all others out, and answers that give way and then differ."""
    asked = {"messages": QUESTION, "n": 16, "min_tokens": 6000, "max_tokens": 6000, "stream": True}
    over = threading.Event()

    def attack(seed: int) -> int:
        found = 0
        with greedy.stream("POST", CHAT, json=asked | {"seed": seed}) as reply:
            for line in reply.iter_lines():
                found += line.startswith("data: {")
                if over.is_set():
                    return found
        return found

    with two_keys(tmp_path) as (live, greedy, person), ThreadPoolExecutor(3) as pool:
        answer_s(person, 0)
        quiet = [answer_s(person, seed) for seed in range(20)]
        attacks = [pool.submit(attack, 100 * seed) for seed in range(3)]
        while counter(live, "dgemma_running") < 32:
            time.sleep(0.05)
        time.sleep(3)
        busy = [answer_s(person, seed) for seed in range(20)]
        over.set()
        assert all(one.result() > 0 for one in attacks)
        while counter(live, "dgemma_running"):
            time.sleep(0.05)
        alone = [texts(greedy, 100 * seed) for seed in range(3)]
        before = counter(live, "dgemma_preemptions_total")
        jobs = [pool.submit(texts, greedy, 100 * seed) for seed in range(3)]
        while not all(job.done() for job in jobs):
            answer_s(person, 1)
        set_back = counter(live, "dgemma_preemptions_total") - before
        assert [job.result() for job in jobs] == alone
    record("a chat alone, s, median of 20", median(quiet))
    record("the same beside 48 long answers of another key, s", median(busy))
    record("the second over the first", median(busy) / median(quiet), "<= 10")
    record("answers that gave way, and had the same tokens as alone", set_back, "> 0")
    assert median(busy) <= 10 * median(quiet) and set_back > 0


def counter(live: Live, name: str) -> float:
    """A number of /metrics."""
    text = httpx.get(f"{live.url}/metrics", headers=HEADERS, timeout=60).text
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])
