"""`dgemma serve` as a process of its own, over a real socket: start, answer, stop."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dgemma.cli import serve as command
from dgemma.cli.main import Parser, main
from dgemma.errors import InvalidRequest
from dgemma.server.settings import ServerLimits
from tests.support.client import ASK, QUESTION
from tests.support.live import HEADERS, KEY, Live, check_events, running

pytestmark = pytest.mark.process

WAIT_S = 30
"""A server that has not stopped by then, grace and all, does not stop."""
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"min_tokens": 6000, "max_tokens": 6000, "seed": 1}
SLOW: dict[str, Any] = {"diffusion": {"max_steps": 10_000, "stability_threshold": 10_000}}
TOKENS: dict[str, Any] = {"messages": QUESTION, "stream": True, "diffusion": {"stream": "tokens"}}
OPEN: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": QUESTION, "stream": True} | LONG),
    (CHAT, {"messages": QUESTION, "stream": True, "n": 2} | LONG),
    (CHAT, {"messages": QUESTION, "stream": True, "diffusing": True} | LONG),
    (CHAT, TOKENS | LONG),
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 64, "stream": True} | SLOW),
    ("/v1/completions", {"prompt": "Hello", "stream": True} | LONG),
    ("/v1/completions", {"prompt": "Hello", "suffix": " you.", "stream": True} | SLOW),
    ("/infill", {"input_prefix": "Hello", "input_suffix": " you.", "stream": True} | SLOW),
    (CHAT, {"messages": QUESTION} | LONG),
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 64} | SLOW),
    ("/v1/completions", {"prompt": "Hello", "n": 2} | LONG),
    ("/v1/fim/completions", {"prompt": "Hello", "suffix": " you."} | SLOW),
)
"""Requests that are open when the server is told to stop."""


def test_start_answer_and_stop() -> None:
    """Catches a server that is up before it can answer, says another address than its own, or cuts
    off an answer for which there is time; one that does not stop, or not by the signal."""
    with (
        running("--grace-s", "25") as live,
        httpx.Client(base_url=live.url, headers=HEADERS, timeout=30) as client,
    ):
        assert f"curl -N {live.url}{CHAT}" in live.said and "Bearer" in live.said
        assert f"open {live.url}/ in a browser and give the key; try:" in live.said
        assert client.get("/health").status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 421
        assert httpx.get(live.url).headers["content-type"] == "text/html; charset=utf-8"
        rendered = client.post("/ui/render", json={"markdown": "*a*"})
        assert rendered.json() == {"html": '<p dir="auto"><em>a</em></p>\n'}
        reply = client.post(CHAT, json=ASK)
        assert reply.json()["choices"][0]["finish_reason"] == "stop"
        longer = {"messages": QUESTION, "stream": True, "min_tokens": 150, "max_tokens": 150}
        longer |= {"stream_options": {"include_usage": True}}
        with client.stream("POST", CHAT, json=longer) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            live.process.send_signal(signal.SIGTERM)
            text = "\n".join([first, *lines])
        # Its last token may be an end id: whether it is hangs on the seed and on the weights.
        assert re.search('"finish_reason":"(length|stop)"', text) and '"error"' not in text
        assert '"completion_tokens":150' in text
        assert text.rstrip().endswith("data: [DONE]")
        # The convention for a process that was asked to end: supervisors read it as a clean stop.
        assert live.process.wait(WAIT_S) == -signal.SIGTERM
        assert "Traceback" not in live.log.read_text()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{live.url}/health")


def test_the_sender_of_too_much_is_told(count: Callable[[int, int], int]) -> None:
    """Catches a reply that is lost because the connection is closed on what was sent: a reset."""
    with running("--max-body-bytes", "20000") as live:

        def ask(_: int) -> None:
            with httpx.Client(base_url=live.url, timeout=60) as client:
                for number in range(
                    count(80, 200)
                ):  # a refused key leaves the connection open for the next
                    headers, status = ({}, 401) if number % 2 else (HEADERS, 413)
                    reply = client.post(CHAT, content=b" " * 20_001, headers=headers)
                    assert reply.status_code == status

        with ThreadPoolExecutor(8) as crowd:
            list(crowd.map(ask, range(8)))


def stall(url: str) -> socket.socket:
    """A stream that nobody reads."""
    address = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect((address.hostname, address.port))
    body = json.dumps(TOKENS | LONG)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def test_stop_under_load() -> None:
    """Catches a stream that ends in the middle without a word, a plain request without a reply,
    and a server that waits for a client that does not read."""
    found: dict[int, tuple[int, str, httpx.Headers]] = {}
    begun = threading.Semaphore(0)

    def ask(number: int) -> None:
        path, body = OPEN[number]
        with (
            httpx.Client(base_url=live.url, headers=HEADERS, timeout=60) as client,
            client.stream("POST", path, json=body) as response,
        ):
            parts = []
            for part in response.iter_text():
                parts.append(part)
                begun.release()
            found[number] = (response.status_code, "".join(parts), response.headers)

    with running("--grace-s", "0.5") as live:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(OPEN))]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert begun.acquire(timeout=WAIT_S)
        with stall(live.url):
            until = time.monotonic() + WAIT_S
            while open_requests(live) <= len(OPEN):
                assert time.monotonic() < until, "not all requests were taken"
                time.sleep(0.05)
            live.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(WAIT_S)
            assert live.process.wait(WAIT_S) == -signal.SIGTERM
        assert "Traceback" not in live.log.read_text()
    assert len(found) == len(OPEN)
    for number, (path, body) in enumerate(OPEN):
        status, text, headers = found[number]
        assert "shutting down" in text, (path, body, text[-300:])
        if body.get("stream"):
            assert status == 200
            check_events(text)
        else:
            assert status == 503 and json.loads(text)["error"]["message"]
            assert headers["retry-after"] == "1"


def open_requests(live: Live) -> float:
    """How many the server works on."""
    text = httpx.get(f"{live.url}/metrics", headers=HEADERS).text
    [line] = [line for line in text.splitlines() if line.startswith("dgemma_http_open_requests ")]
    return float(line.split()[1])


def test_an_interrupt_stops_it_too() -> None:
    """Catches a traceback for Ctrl-C, and an exit code that says all went well."""
    with running() as live:
        live.process.send_signal(signal.SIGINT)
        assert live.process.wait(WAIT_S) == 130
        assert "Traceback" not in live.log.read_text()


@pytest.mark.fault("N 42")
def test_a_second_interrupt_stops_it_at_once() -> None:
    """Catches pages of tracebacks for whoever does not want to wait, and a first message that does
    not say how long it takes."""
    body = {"messages": QUESTION, "stream": True} | LONG
    with (
        running("--grace-s", "25") as live,
        httpx.Client(base_url=live.url, headers=HEADERS, timeout=30) as client,
        client.stream("POST", CHAT, json=body) as first,
        client.stream("POST", CHAT, json=body) as second,
    ):
        for stream in (first, second):
            next(stream.iter_lines())
        live.process.send_signal(signal.SIGINT)
        until = time.monotonic() + WAIT_S
        while "stopping" not in live.log.read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        live.process.send_signal(signal.SIGINT)
        assert live.process.wait(10) == 130
        said = live.log.read_text()
    line = "stopping: open requests may finish, up to 25 s; press Ctrl-C again to stop at once"
    assert line in said.splitlines() and "Traceback" not in said
    assert said.splitlines()[-1] == line


@pytest.mark.full
def test_health_after_loading(record: Callable[..., None]) -> None:
    """Catches a server that does something slow before it answers: 2 s beyond loading, at most.
    The best of three each, since a busy machine is not a bug."""
    loading, answering = [], []
    load = "import dgemma; dgemma.load('nano')"
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", load], check=True)
        loading.append(time.perf_counter() - began)
        began = time.perf_counter()
        with running() as live:
            assert httpx.get(f"{live.url}/health").status_code == 200
            answering.append(time.perf_counter() - began)
    record("load nano in a process of its own, s", min(loading))
    record("start a server until /health answers, s", min(answering), "<= loading + 2")
    assert min(answering) <= min(loading) + 2


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback after a minute of loading."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "nano", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_two_servers_of_one_port() -> None:
    """Catches a second server that takes the port as well, since the first one still loads."""
    first = command.listen("127.0.0.1", 0)
    with first, pytest.raises(InvalidRequest, match="cannot listen"):
        command.listen("127.0.0.1", first.getsockname()[1])


def test_what_comes_after_the_signal() -> None:
    """Catches a page that tells of 503 where nobody listens any more, and a request that was on
    its way and is dropped without a word, or taken."""
    body = json.dumps(ASK).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with running("--grace-s", "10") as live:
        address = urlsplit(live.url)
        with socket.create_connection((address.hostname, address.port), WAIT_S) as connection:
            connection.sendall(head.encode() + body[:1])
            httpx.get(f"{live.url}/health")  # by now the head has come
            live.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + WAIT_S
            with pytest.raises(httpx.TransportError):  # refused, or taken up and let go
                while time.monotonic() < until:
                    httpx.get(f"{live.url}/health")
            connection.sendall(body[1:])
            with connection.makefile("rb") as replies:
                reply = replies.read().decode()
        assert " 503 " in reply.splitlines()[0] and "shutting_down" in reply
        assert "retry-after: 1" in reply.lower()
        assert live.process.wait(WAIT_S) == -signal.SIGTERM


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback where one line with the install command would do."""
    monkeypatch.delitem(sys.modules, "dgemma.server.listener", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'dgemma[server]'" in capsys.readouterr().err


def test_options_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option that is accepted and ignored, and a limit without one."""
    parser = Parser()
    command.configure(parser)
    plain = command.settings_of(parser.parse_args(["nano"]))
    assert plain.names == ("nano",) and not plain.keys and plain.limits == ServerLimits()
    assert set(command.PER_LIMIT) | {"json_depth"} == set(ServerLimits.__slots__)
    file = tmp_path / "keys"
    file.write_text("sk-first-key\n")
    limits = [text for name in command.PER_LIMIT for text in (command.option_of(name), "7")]
    given = parser.parse_args([
        "org/model", "--served-name", "a", "--served-name", "b", "--api-key-file", str(file),
        "--admin-key-file", str(file), "--cors-origin", "https://page.example", "--log-text",
        "--heartbeat-s", "3", "--grace-s", "4", *limits,
    ])  # fmt: skip
    monkeypatch.setenv("DGEMMA_API_KEYS", "sk-second-key")
    found = command.settings_of(given)
    assert found.names == ("a", "b") and found.cors_origins == ("https://page.example",)
    assert len(found.keys.hashes) == 2 and found.log_text
    assert [len(one.admin_keys.hashes) for one in (plain, found)] == [0, 1]
    assert (found.heartbeat_s, found.grace_s) == (3, 4)
    assert {getattr(found.limits, name) for name in command.PER_LIMIT} == {7}
    both = command.settings_of(parser.parse_args(["org/model"]))
    assert both.names == ("model", "org/model")
    with pytest.raises(InvalidRequest, match="--port"):
        command.settings_of(parser.parse_args(["nano", "--port", "70000"]))
