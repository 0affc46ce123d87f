"""`dgemma serve` as a process of its own, over a real socket: start, answer, stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dgemma.cli import serve as command
from dgemma.cli.main import Parser, main
from dgemma.errors import InvalidRequest
from dgemma.server.settings import Limits
from tests.server.client import ASK, QUESTION


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server, its address and what it said when it was ready."""
    server = subprocess.Popen(
        [sys.executable, "-m", "dgemma.cli.main", "serve", "nano", "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DGEMMA_API_KEYS": "sk-the-test-key"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        said = "".join(server.stdout.readline() for _ in range(4))
        found = re.search(r"http://\S+:\d+", said)
        assert found, (said, server.stderr.read() if server.stderr else "")
        yield server, found.group(), said
    finally:
        server.kill()
        server.communicate()


def test_start_answer_and_stop() -> None:
    """Catches a server that is up before it can answer, says another address than its own, leaves
    a stream half written when it is told to stop, or does not stop."""
    with running("--grace-s", "0.2") as (server, url, said):
        assert f"curl -N {url}/v1/chat/completions" in said and "Bearer" in said
        with httpx.Client(
            base_url=url, headers={"authorization": "Bearer sk-the-test-key"}, timeout=30
        ) as client:
            assert client.get("/health").status_code == 200
            reply = client.post("/v1/chat/completions", json=ASK)
            assert reply.json()["choices"][0]["finish_reason"] == "stop"
            endless = {"messages": QUESTION, "stream": True, "min_tokens": 8000, "seed": 1}
            with client.stream("POST", "/v1/chat/completions", json=endless) as stream:
                lines = (line for line in stream.iter_lines() if line)
                first = [next(lines) for _ in range(3)]
                server.send_signal(signal.SIGTERM)
                rest = list(lines)
        assert all(line.startswith("data: ") for line in first + rest)
        assert rest[-1] == "data: [DONE]"
        told = json.loads(rest[-2].removeprefix("data: "))["error"]
        assert told["code"] == "cancelled" and "shutting down" in told["message"]
        began = time.monotonic()
        server.wait(20)
        assert time.monotonic() - began < 15
        assert server.returncode in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


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


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback where one line with the install command would do."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'dgemma[server]'" in capsys.readouterr().err


def test_options_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option that is accepted and ignored, and a limit without one."""
    parser = Parser()
    command.configure(parser)
    plain = command.settings_of(parser.parse_args(["nano"]))
    assert plain.names == ("nano",) and not plain.keys and plain.limits == Limits()
    assert set(command.PER_LIMIT) | {"json_depth"} == set(Limits.__slots__)
    file = tmp_path / "keys"
    file.write_text("sk-first-key\n")
    limits = [text for name in command.PER_LIMIT for text in (command.option_of(name), "7")]
    given = parser.parse_args([
        "org/model", "--served-name", "a", "--served-name", "b", "--api-key-file", str(file),
        "--cors-origin", "https://page.example", "--log-text", "--heartbeat-s", "3",
        "--grace-s", "4", *limits,
    ])  # fmt: skip
    monkeypatch.setenv("DGEMMA_API_KEYS", "sk-second-key")
    found = command.settings_of(given)
    assert found.names == ("a", "b") and found.cors_origins == ("https://page.example",)
    assert len(found.keys.hashes) == 2 and found.log_text
    assert (found.heartbeat_s, found.grace_s) == (3, 4)
    assert {getattr(found.limits, name) for name in command.PER_LIMIT} == {7}
    both = command.settings_of(parser.parse_args(["org/model"]))
    assert both.names == ("model", "org/model")
    with pytest.raises(InvalidRequest, match="--port"):
        command.settings_of(parser.parse_args(["nano", "--port", "70000"]))
