"""Many clients of every kind for a long time: nothing is lost, nothing is left behind."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.bodies import BODIES, STREAMED
from tests.support.client import ASK
from tests.support.live import HEADERS, Live, check_events, running

pytestmark = pytest.mark.process

CHAT = "/v1/chat/completions"
ASKED: dict[str, dict[str, Any]] = {CHAT: ASK} | BODIES
CLIENTS = 8
OPTIONS = (
    "--max-tokens", "64", "--max-open-requests", "6", "--max-body-bytes", "20000",
    "--max-steps", "16", "--heartbeat-s", "0.05",
)  # fmt: skip
BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400), (b"[1]", 400), (b"\xff", 400), (b'{"a": NaN}', 400), (b"[" * 300, 400),
    (b'{"temprature": 1}', 400), (b'{"messages": []}', 400), (b" " * 20_001, 413),
)  # fmt: skip
LEFT = ("dgemma_running", "dgemma_waiting", "dgemma_pages_full_used", "dgemma_http_open_requests")
"""Gauges that are zero when nobody asks for anything."""
STEADY = ("process_open_fds", "dgemma_event_loop_tasks")
"""Gauges that come back to what they were."""
MEMORY = "process_resident_memory_bytes"
GROWTH = 1.05
"""What the memory may grow by after the warm-up, as a factor."""


@dataclass(slots=True)
class Crowd:
    """Clients of one server, each in a thread, and what became of their requests.

    Attributes:
        seen: by request id, the status that its client got; None: the client did not wait for it.
        maybe: ids of requests that may have been lost on their way, since they were reset.
        faults: what should not have happened.
    """

    live: Live
    seen: dict[str, int | None] = field(default_factory=dict)
    maybe: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def run(self, seconds: float, least: int, seed: int) -> None:
        """All clients at once, for so long, and until each has made `least` requests."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(f"{seed}-{number}", until, least))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 300)
            assert not thread.is_alive(), "a client waits for an answer that does not come"

    def _client(self, name: str, until: float, least: int) -> None:
        draw, number = random.Random(name), 0
        kinds = (self._plain, self._stream, self._leave, self._bad, self._hang_up, self._look)
        with httpx.Client(base_url=self.live.url, headers=HEADERS, timeout=60) as http:
            while number < least or time.monotonic() < until:
                number += 1
                kind = draw.choice(kinds)
                self.kinds[kind.__name__.strip("_")] += 1
                try:
                    kind(draw, http, f"soak-{name}-{number}")
                except Exception as error:
                    self.faults.append(f"{kind.__name__} {number}: {error!r}")

    def _body(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        path = draw.choice((CHAT, *ASKED))
        body = ASKED[path] | ({"seed": draw.getrandbits(32)} if "seed" in ASKED[path] else {})
        if path == CHAT:
            body |= draw.choice(({}, {"n": 2}, {"min_tokens": 64}, {"logprobs": True}))
        return path, body

    def _plain(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        path, body = self._body(draw)
        response = http.post(path, json=body, headers={"x-request-id": name})
        self.seen[name] = response.status_code
        assert response.headers["x-request-id"] == name
        assert response.status_code in (200, 429), response.text
        assert ("error" in response.json()) == (response.status_code == 429)

    def _streamed(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        path = draw.choice((CHAT, *STREAMED))
        frames = {"diffusion": {"max_steps": 4, "stream": draw.choice(("off", "text", "tokens"))}}
        return path, ASKED[path] | {"stream": True} | (frames if path == CHAT else {})

    def _stream(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        path, body = self._streamed(draw)
        response = http.post(path, json=body, headers={"x-request-id": name})
        self.seen[name] = response.status_code
        assert response.status_code in (200, 429), response.text
        if response.status_code == 200:
            check_events(response.text)
            assert '"error"' not in response.text, response.text

    def _leave(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        path, body = self._streamed(draw)
        body |= {"min_tokens": 64} if path == CHAT else {}
        self.seen[name] = None
        headers = {"x-request-id": name}
        with http.stream("POST", path, json=body, headers=headers) as response:
            for _, _ in zip(range(draw.randrange(12)), response.iter_lines(), strict=False):
                pass

    def _bad(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        content, status = draw.choice(BAD)
        headers = {"x-request-id": name, "content-type": "application/json"}
        if draw.random() < 0.2:
            headers["authorization"], status = "Bearer sk-the-wrong-key", 401
        response = http.post(draw.choice(list(ASKED)), content=content, headers=headers)
        self.seen[name] = response.status_code
        assert response.status_code in (status, 429), (content[:50], response.text)
        assert response.json()["error"]["message"]

    def _hang_up(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        """Gone after a part of the body, or all of it; with a reset, or without."""
        path, body = self._body(draw)
        content, address = json.dumps(body).encode(), urlsplit(self.live.url)
        sent = content[: draw.choice((0, 5, len(content), len(content)))]
        headers = {
            "host": address.netloc, "x-request-id": name, "content-type": "application/json",
            "content-length": str(len(content)), **HEADERS,
        }  # fmt: skip
        head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        with socket.create_connection((address.hostname, address.port or 80)) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + sent)
            time.sleep(draw.choice((0, 0.02, 0.1)))
            self.seen[name] = None
            if draw.random() < 0.5:
                self.maybe.add(name)
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _look(self, draw: random.Random, http: httpx.Client, name: str) -> None:
        path = draw.choice(("/health", "/metrics", "/v1/models", "/openapi.json"))
        response = http.get(path, headers={"x-request-id": name})
        self.seen[name] = response.status_code
        assert response.status_code == 200, response.text


def gauges(live: Live) -> dict[str, float]:
    """The metrics without labels, when nothing is open any more or after half a minute."""
    until = time.monotonic() + 30
    while True:
        text = httpx.get(f"{live.url}/metrics", headers=HEADERS).text
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        found = {sample.name: sample.value for sample in samples if not sample.labels}
        if not any(found[name] for name in LEFT) or time.monotonic() > until:
            return found
        time.sleep(0.05)


def settled(live: Live) -> dict[str, float]:
    """The gauges when connections are closed and their tasks are gone."""
    time.sleep(0.5)
    return gauges(live)


def logged(live: Live) -> dict[str, list[int]]:
    """By request id, the statuses that the server's log tells."""
    found: dict[str, list[int]] = {}
    for line in live.log.read_text().splitlines():
        entry = json.loads(line)
        if "request_id" in entry:
            found.setdefault(entry["request_id"], []).append(entry["status"])
    return found


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A server with few places, so that some requests find none."""
    with running(*OPTIONS) as found:
        yield found


def test_a_hundred_connections_are_dropped(live: Live) -> None:
    """Catches a handle, a task or a place that stays behind with a connection that said nothing,
    a part of a head, a head alone, or a whole request."""
    before, address = settled(live), urlsplit(live.url)
    content = json.dumps(ASK | {"stream": True, "min_tokens": 64})
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(content)}\r\n"
    head += "content-type: application/json\r\n"
    head += "".join(f"{key}: {value}\r\n" for key, value in HEADERS.items()) + "\r\n"
    said = ("", head[:40], head, head + content)
    connections = []
    for number in range(100):
        connection = socket.create_connection((address.hostname, address.port or 80))
        connection.sendall(said[number % 4].encode())
        connections.append(connection)
    for number, connection in enumerate(connections):
        if number % 8 < 4:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    after = settled(live)
    assert [after[name] for name in LEFT] == [0] * len(LEFT)
    assert {name: after[name] for name in STEADY} == {name: before[name] for name in STEADY}


def test_soak(
    live: Live, full: bool, count: Callable[[int, int], int], record: Callable[..., None]
) -> None:
    """Catches what is lost once in a thousand requests: a page, a place, a task, a file handle, a
    reply, or memory that grows with them."""
    seconds = count(0, 600)
    crowd = Crowd(live)
    crowd.run(seconds / 5, 5, seed=0)
    before = settled(live)
    crowd.run(seconds * 4 / 5, 20, seed=1)
    after = settled(live)
    assert not crowd.faults, "\n".join(crowd.faults[:20])
    assert len(crowd.kinds) == 6 and min(crowd.kinds.values()) > 0
    assert {200, 400, 401} <= set(crowd.seen.values())
    statuses = logged(live)
    for name, status in crowd.seen.items():
        ends = statuses.get(name, [])
        assert len(ends) == 1 or (name in crowd.maybe and not ends), (name, ends)
        assert status in (None, *ends), (name, status, ends)
    assert not [name for name, [status] in statuses.items() if status >= 500]
    assert "Traceback" not in live.log.read_text()
    assert [after[name] for name in LEFT] == [0] * len(LEFT)
    assert {name: after[name] for name in STEADY} == {name: before[name] for name in STEADY}
    growth = after[MEMORY] / before[MEMORY]
    record("soak, requests", len(crowd.seen))
    record("soak, memory at the end / after the warm-up", growth, f"<= {GROWTH} in full")
    assert not full or growth <= GROWTH
