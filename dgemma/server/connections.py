"""Connections: how many there may be, how long each may take, and which bytes are a request.

uvicorn has no option for any of this, so its protocol class is extended here. Knows sockets and
HTTP's framing. Knows nothing about paths or bodies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from dgemma.server.errors import Refusal, body_of
from dgemma.server.log import Seldom

HEAD_S = 15.0
"""Seconds in which the head of a request must arrive: after the connection, or the last reply."""

KEEP_S = 5
"""Seconds that a connection may be idle between two requests."""

STALL_S = 60.0
"""Seconds after which a client that takes nothing of its reply is cut off."""

SEND_BYTES = 128 * 1024
"""Bytes of a reply that the system keeps for a client (Linux takes twice as many). By itself it
would grow to megabytes, and it would take a stream long to notice that nobody reads it."""

FEW_CHUNKS, LEAST_CHUNK = 512, 128
"""Chunks of a body that may have any size; if there are more, bytes of one on average. Each chunk
costs the event loop as much as kilobytes do."""

HEAD_BYTES = 16 * 1024
"""Bytes of the head of a request."""


class Evictable(Protocol):
    """A connection that can be closed to make room."""

    def give_way(self) -> None:
        """Close it now."""
        ...

    def begin(self) -> None:
        """Read it now."""
        ...


class Connections:
    """The open connections. If there are too many, one without a request makes room."""

    def __init__(
        self, most: int, per_address: int, per_second: int = 100,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[..., object] = lambda *given: asyncio.get_running_loop().call_later(*given),
    ) -> None:  # fmt: skip
        """
        Args:
            most: connections in all.
            per_address: connections of one address.
            per_second: new connections of one address that are read in a second, and at once.
            clock: seconds; `later` calls a function after so many.
        """
        self.most, self.per_address, self.per_second = most, per_address, per_second
        self._clock, self._later = clock, later
        self._level: dict[str, tuple[float, float]] = {}  # of each address: begun lately, and when
        self._paused: dict[str, dict[Evictable, None]] = {}  # of each address, in their order
        self.seldom = Seldom()
        self._count: Counter[str] = Counter()
        self._address: dict[Evictable, str] = {}
        self._idle: dict[str, dict[Evictable, None]] = {}  # of each address, the oldest first

    def __len__(self) -> int:
        return len(self._address)

    def may_begin(self, connection: Evictable, address: str) -> bool:
        """Whether a new connection may be read now; else its `begin` is called at its turn.

        New connections of all addresses wait in one line of the system. Each is taken from it at
        once, but to read a request takes long, and an address that opens many would hold up all.
        """
        now = self._clock()
        if len(self._level) > self.most:  # after a second nothing is left of a level
            self._level = {one: at for one, at in self._level.items() if now - at[1] < 1}
        level, then = self._level.get(address, (0.0, now))
        level = max(0.0, level - (now - then) * self.per_second)
        if address not in self._paused and level < self.per_second:
            self._level[address] = level + 1, now
            return True
        if address not in self._paused:
            self._paused[address] = {}
            self._later(1 / self.per_second, self._next, address)
        self._paused[address][connection] = None
        return False

    def _next(self, address: str) -> None:
        """Let the next connection of an address begin, if one is left."""
        waiting = self._paused[address]
        if not waiting:
            del self._paused[address]
            return
        connection = next(iter(waiting))
        del waiting[connection]
        self._level[address] = float(self.per_second), self._clock()
        self._later(1 / self.per_second, self._next, address)
        connection.begin()

    def admit(self, connection: Evictable, address: str) -> bool:
        """Take a new connection; False: there are too many, and each is at work."""
        full = self._count[address] >= self.per_address
        if full or len(self) >= self.most:
            crowded = address if full else max(self._idle, key=self._count.__getitem__, default="")
            oldest = next(iter(self._idle.get(crowded, ())), None)
            if oldest is None:
                return False
            self.drop(oldest)
            oldest.give_way()
        self._count[address] += 1
        self._address[connection] = address
        return True

    def drop(self, connection: Evictable) -> None:
        """Forget a connection; one that is not known is no error."""
        self.busy(connection)
        address = self._address.pop(connection, None)
        if address is not None:
            self._paused.get(address, {}).pop(connection, None)
            self._count[address] -= 1
            if not self._count[address]:
                del self._count[address]

    def idle(self, connection: Evictable) -> None:
        """A connection has no request any more: it is the last one to make room."""
        address = self._address.get(connection)
        if address is not None:
            self._idle.setdefault(address, {})[connection] = None

    def busy(self, connection: Evictable) -> None:
        """A connection has a request: it is not closed to make room."""
        address = self._address.get(connection, "")
        waiting = self._idle.get(address, {})
        waiting.pop(connection, None)
        if not waiting:
            self._idle.pop(address, None)


class StrictBuffer(ReceiveBuffer):
    """h11's buffer, without its leniency: every line ends in CRLF, and no header is folded.

    A proxy in front that reads such bytes in another way would see other requests than we do.

    Attributes:
        why: the reason for the last refusal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.why: str | None = None
        self._chunks = self._bytes = 0

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The head of a request, or the trailers of a body."""
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines is not None:
            self._chunks = self._bytes = 0
            if before - len(self) > HEAD_BYTES:
                self._refuse(f"its head is larger than {HEAD_BYTES} bytes; send less")
            if before - len(self) != sum(map(len, lines)) + 2 * len(lines) + 2:
                self._refuse("a line of its head ends in LF alone; end each in CRLF")
            if any(line.startswith((b" ", b"\t")) for line in lines):
                self._refuse("a header is folded over several lines; send it on one")
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line before a chunk."""
        line = super().maybe_extract_next_line()
        if line is not None:
            self._chunks += 1
            if self._chunks > FEW_CHUNKS + self._bytes // LEAST_CHUNK:
                self._refuse(f"the chunks of its body are below {LEAST_CHUNK} bytes; send larger")
        return line

    def maybe_extract_at_most(self, count: int) -> bytearray | None:
        """A part of a body."""
        part = super().maybe_extract_at_most(count)
        self._bytes += len(part or b"")
        return part

    def _refuse(self, why: str) -> None:
        self.why = why
        raise h11.LocalProtocolError(why)


class Connection(H11Protocol):
    """uvicorn's connection with time limits, a place among all, and strict framing."""

    def __init__(self, shared: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._shared = shared
        self._buffer = self.conn._receive_buffer = StrictBuffer()
        self._late: asyncio.TimerHandle | None = None  # until the head is here
        self._stuck: asyncio.TimerHandle | None = None  # while the client takes nothing

    # -- the beginning and the end -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        address = origin(self.client[0] if self.client else "")
        own: socket.socket | None = transport.get_extra_info("socket")
        if own is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        if self._shared.admit(self, address):
            self._shared.idle(self)
            if self._shared.may_begin(self, address):
                self._wait()
            else:
                transport.pause_reading()
            return
        message = "too many connections are open; close some, or try again soon"
        self.refuse(Refusal(503, message, code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._shared.drop(self)
        self._stop_waiting()
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self.transport.is_closing():
            super().data_received(data)

    def begin(self) -> None:
        """See `Evictable`."""
        if not self.transport.is_closing():
            self._wait()
            self.transport.resume_reading()

    def give_way(self) -> None:
        """See `Evictable`."""
        self._shared.seldom.warn(
            "room", f"{len(self._shared)} connections are open: an idle one was closed for another"
        )
        self.transport.abort()

    # -- the head ----------------------------------------------------------------------------------

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def handle_events(self) -> None:
        """See `H11Protocol`."""
        super().handle_events()
        if self._at_work:
            self._stop_waiting()
            self._shared.busy(self)
        elif not self.transport.is_closing():
            self._wait()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        if not self._at_work:
            self._wait()
            if self.transport.get_write_buffer_size():
                self._watch()

    def _wait(self) -> None:
        """From now on the head of a request must come; what comes does not start the time anew."""
        self._shared.idle(self)
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        if not self._buffer:  # nothing has come, so nobody waits for a reply
            self.transport.close()
            return
        late = f"the head of a request must come within {HEAD_S:.0f} s"
        self.refuse(Refusal(408, late, code="timeout"))

    def send_400_response(self, msg: str) -> None:
        """See `H11Protocol`."""
        why = self._buffer.why or f"it is not HTTP/1.1, or its head is above {HEAD_BYTES} bytes"
        self.refuse(Refusal(400, f"the request cannot be read: {why}", code="bad_request"))

    def refuse(self, refused: Refusal) -> None:
        """Answer by an error, unless an answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        self._shared.seldom.warn(f"refused {refused.status}", f"refused: {refused.message}")
        if not (self._at_work and self.cycle.response_started):
            self.transport.write(plain_response(refused))
        if self.transport.get_write_buffer_size():
            self._watch()
        self.transport.close()

    # -- the reply ---------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        self._unwatch()
        if not self._at_work:  # the reply is written, and its rest must go as well
            self._watch()

    def _watch(self) -> None:
        """Look again in a while whether the client has taken something."""
        self._unwatch()
        left = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(STALL_S, self._look, left)

    def _unwatch(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _look(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if not left:
            return
        if left < before:
            self._watch()
            return
        message = f"a client took nothing of its reply for {STALL_S:.0f} s and was cut off"
        self._shared.seldom.warn("stalled", message)
        if self._at_work:
            self.cycle.scope.setdefault("dgemma.log", {})["error"] = "stalled"  # type: ignore[typeddict-item]
        self.transport.abort()


def origin(host: str) -> str:
    """The address that connections are counted by: of IPv6 its network, which one host may have."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host or "unknown"
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def plain_response(refused: Refusal) -> bytes:
    """An error as bytes, for a request that no layer has seen: its path is not known."""
    body = json.dumps(body_of(refused, "openai")).encode()
    headers = {
        **refused.headers, "Content-Type": "application/json",
        "Content-Length": str(len(body)), "Connection": "close",
    }  # fmt: skip
    status = HTTPStatus(refused.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
