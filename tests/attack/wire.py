"""Requests as an attacker sends them: over HTTP, or as raw bytes on a socket.

Speaks to the loopback address alone. Knows nothing about what is sent.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

HOST = "127.0.0.1"
ATTACKER = "127.0.0.2"
"""The address that attackers call from, so that a bound per address is not the neighbour's."""

Answers = Counter[str]
"""How often each status came; or `timeout`, `closed`, `refused` in its place."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a key who calls a server on this machine."""

    port: int
    key: str
    source: str = HOST

    @property
    def headers(self) -> dict[str, str]:
        """Those of every request."""
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}

    def call(
        self, method: str, path: str, body: Any = None, timeout_s: float = 10.0
    ) -> tuple[str, bytes]:
        """The status, or how it failed, and the reply.

        Args:
            body: sent as JSON; bytes as they are.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with self._connection(timeout_s) as connection:
                connection.request(method, path, data, self.headers)
                reply = connection.getresponse()
                return str(reply.status), reply.read()
        except (OSError, http.client.HTTPException) as error:
            return failure(error), b""

    def post(self, path: str, body: Any, timeout_s: float = 10.0) -> str:
        """The status of a POST, or how it failed."""
        return self.call("POST", path, body, timeout_s)[0]

    @contextmanager
    def _connection(self, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(
            HOST, self.port, timeout=timeout_s, source_address=(self.source, 0)
        )
        try:
            yield connection
        finally:
            connection.close()

    def socket(self, timeout_s: float = 5.0) -> socket.socket:
        """A connection to be filled by hand."""
        return socket.create_connection((HOST, self.port), timeout_s, (self.source, 0))

    def head(self, path: str, *lines: str) -> bytes:
        """The head of a POST with further header lines, up to and without the empty line."""
        first = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
        return (first + "".join(f"{line}\r\n" for line in lines)).encode()

    def raw(self, data: bytes, timeout_s: float = 5.0) -> str:
        """Send bytes and read one status line."""
        try:
            with self.socket(timeout_s) as sock:
                sock.sendall(data)
                return status_of(sock)
        except OSError as error:
            return failure(error)


def status_of(sock: socket.socket) -> str:
    """The status that comes, or `closed`."""
    line = sock.recv(64)
    return line.split(b" ")[1][:3].decode("ascii", "replace") if b" " in line else "closed"


def failure(error: Exception) -> str:
    """How a call failed."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "refused" if isinstance(error, ConnectionRefusedError) else "closed"


def at_once(count: int, work: Callable[[int], str], until: float) -> Answers:
    """Do work in so many threads, again and again until a moment of `time.monotonic`."""
    found, lock = Answers(), Lock()

    def loop(number: int) -> None:
        while time.monotonic() < until:
            answer = work(number)
            with lock:
                found[answer] += 1

    threads = [Thread(target=loop, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()) + 30)
    return found


def held(caller: Caller, count: int, first: bytes, drip: bytes, until: float) -> Answers:
    """Open connections, send `first`, then `drip` on each once a second; never read.

    A connection that the server closes is opened again.
    """
    found, open_ones = Answers(), list[socket.socket]()
    while time.monotonic() < until:
        for sock in list(open_ones):
            try:
                sock.sendall(drip)
            except OSError:
                open_ones.remove(sock)
                sock.close()
                found["closed"] += 1
        while len(open_ones) < count and time.monotonic() < until:
            try:
                open_ones.append(caller.socket(2.0))
                open_ones[-1].settimeout(0.2)
                open_ones[-1].sendall(first)
            except OSError as error:
                found[failure(error)] += 1
                break
        time.sleep(1.0)
    found["held to the end"] += len(open_ones)
    for sock in open_ones:
        with suppress(OSError):
            sock.close()
    return found
