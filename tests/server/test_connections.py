"""Connections: how many, how long, which bytes are a request; in one process, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from dgemma.server import connections
from dgemma.server.connections import Connection, Connections, StrictBuffer, origin
from dgemma.server.listener import NO_ROOM, RESERVED, Server, connections_of
from dgemma.server.log import Seldom
from dgemma.server.settings import ServerLimits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
WAIT_S = 20


class Visitor:
    """A connection that keeps whether it had to go."""

    def __init__(self) -> None:
        self.gone, self.begun = False, 0

    def begin(self) -> None:
        """See `Evictable`."""
        self.begun += 1

    def give_way(self) -> None:
        """See `Evictable`."""
        self.gone = True


def arrive(shared: Connections, address: str, *, idle: bool = True) -> Visitor | None:
    """A new connection; None: it was turned away."""
    one = Visitor()
    if not shared.admit(one, address):
        return None
    if idle:
        shared.idle(one)
    return one


def test_an_address_that_hurries_waits() -> None:
    """Catches a flood of connections that hang up at once: those of others wait behind them."""
    now, timers = [7.0], list[tuple[float, Callable[[], None]]]()

    def later(delay: float, call: Callable[[str], None], address: str) -> None:
        timers.append((now[0] + delay, partial(call, address)))

    def pass_time(until: float) -> None:
        while timers and timers[0][0] <= until + 1e-9:
            now[0], call = timers.pop(0)
            call()
        now[0] = until

    shared = Connections(100, 100, 2, clock=lambda: now[0], later=later)
    crowd = [arrive(shared, "a") for _ in range(6)]
    assert all(crowd)
    assert [shared.may_begin(one, "a") for one in crowd if one] == [True, True, *[False] * 4]
    other = arrive(shared, "b")
    assert other and shared.may_begin(other, "b")
    assert crowd[3] is not None
    shared.drop(crowd[3])
    pass_time(8.0)
    assert [one.begun for one in crowd if one] == [0, 0, 1, 0, 1, 0]
    pass_time(9.0)
    assert [one.begun for one in crowd if one] == [0, 0, 1, 0, 1, 1]
    pass_time(12.0)
    late = arrive(shared, "a")
    assert late and shared.may_begin(late, "a") and not timers
    for number in range(1000):
        now[0] += 0.1
        shared.may_begin(late, str(number))
    assert len(shared._level) <= 101


@pytest.mark.fault("R C4")
def test_the_oldest_idle_one_of_an_address_makes_room() -> None:
    """Catches slow heads that take all places, and a request that is cut off for a newcomer."""
    shared = Connections(10, 3)
    busy, old, new = (arrive(shared, "a", idle=idle) for idle in (False, True, True))
    other = arrive(shared, "b")
    late = arrive(shared, "a")
    assert busy and old and new and other and late
    assert old.gone and not (busy.gone or new.gone or other.gone or late.gone)
    for one in (new, late):
        shared.busy(one)
    assert arrive(shared, "a") is None and arrive(shared, "b")
    shared.drop(busy)
    shared.drop(busy)  # a connection may be lost twice
    assert arrive(shared, "a") and len(shared) == 5


@pytest.mark.fault("R C4")
def test_the_address_with_most_makes_room_for_all() -> None:
    """Catches one address whose idle connections leave no place to any other."""
    shared = Connections(4, 4)
    few = arrive(shared, "a")
    many = [arrive(shared, "b") for _ in range(3)]
    assert arrive(shared, "c") and many[0] and many[0].gone and few and not few.gone


@pytest.mark.fault("R C4")
def test_bounds_follow_the_descriptors() -> None:
    """Catches bounds that a process cannot keep, and a share of an address that is the whole."""
    limits = ServerLimits(connections=2048, connections_per_address=1024)
    free = connections_of(limits, None)
    assert (free.most, free.per_address) == (2048, 1024)
    few = connections_of(limits, 1024)
    assert (few.most, few.per_address) == (1024 - RESERVED, (1024 - RESERVED) // 2)
    assert connections_of(limits, 100).most == 50


def test_addresses_of_one_host_count_as_one() -> None:
    """Catches a host whose network of IPv6 addresses has a bound for each of them."""
    assert origin("2001:db8:1:2::1") == origin("2001:db8:1:2:ffff::2%eth0")
    assert origin("2001:db8:1:2::1") != origin("2001:db8:1:3::1")
    assert origin("::ffff:10.0.0.1") == origin("10.0.0.1") == "10.0.0.1"
    assert origin("") == "unknown"


@pytest.mark.fault("R C4")
def test_trouble_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a disk that fills with one traceback for each connection that cannot be accepted."""
    now = 0.0
    seldom = Seldom(lambda: now)
    told: list[Any] = []
    loop = cast(Any, type("Loop", (), {"default_exception_handler": lambda _, c: told.append(c)})())
    server = cast(Any, type("Holder", (), {"shared": Connections(1, 1)})())
    server.shared.seldom = seldom
    for second in range(0, 130, 10):
        now = float(second)
        for _ in range(100):
            Server._trouble(server, loop, {"message": NO_ROOM, "exception": OSError(24, "many")})
    assert len(caplog.records) == 3 and "(599 more" in caplog.text and not told
    Server._trouble(server, loop, {"message": "another"})
    assert told == [{"message": "another"}]


# -- framing ---------------------------------------------------------------------------------------


def read(data: bytes) -> tuple[list[Any], str | None]:
    """The events that a strict connection sees, and why it refused what follows."""
    conn = h11.Connection(h11.SERVER)
    conn._receive_buffer = buffer = StrictBuffer()
    conn.receive_data(data)
    found: list[Any] = []
    try:
        while (event := conn.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            found.append(event)
    except h11.RemoteProtocolError:
        return found, buffer.why or "h11"
    return found, None


@pytest.mark.fault("R M4")
@pytest.mark.parametrize(("data", "said"), [
    (HEAD + b"A: 1\r\n  2\r\n\r\n", "folded"),
    (HEAD + b"A: 1\r\n\t2\r\n\r\n", "folded"),
    (HEAD + b"A: 1\n\r\n", "LF alone"),
    (HEAD + b"A: 1\r\n\n", "LF alone"),
    (b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "LF alone"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: 1\n\r\n", "LF alone"),
    (HEAD + b"A: b\r\n" * 4000 + b"\r\n", "larger than"),
])  # fmt: skip
def test_lenient_framing_is_refused(data: bytes, said: str) -> None:
    """Catches bytes that a proxy in front may read as other requests than we do."""
    assert said in (read(data)[1] or "")


@pytest.mark.fault("R M6")
def test_chunks_are_counted() -> None:
    """Catches a body of a million chunks of one byte, each as dear as a large one."""
    most, least = connections.FEW_CHUNKS, connections.LEAST_CHUNK
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n" % least + b"x" * least + b"\r\n"
    for chunks in (b"1\r\nx\r\n" * (most - 1), whole * 3 * most):
        good, why = read(head + chunks + b"0\r\n\r\n")
        assert why is None and isinstance(good[-1], h11.EndOfMessage)
    events, why = read(head + b"1\r\nx\r\n" * 3 * most)
    assert most < len(events) < 1.1 * most and "send larger" in (why or "")


# -- over sockets ----------------------------------------------------------------------------------

Answer = Callable[[Any, Any, Any], Awaitable[None]]


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, reply with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@asynccontextmanager
async def listening(app: Answer, shared: Connections | None = None) -> AsyncIterator[int]:
    """The port of a server of an app."""
    shared = Connections(100, 100) if shared is None else shared
    config = uvicorn.Config(cast(Any, app), http=Connection, ws="none", log_config=None)
    make = partial(Connection, shared, config=config, server_state=ServerState(), app_state={})
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def said_to(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def reply_to(data: bytes, app: Answer = plain) -> bytes:
    """The bytes that a fresh server replies with."""

    async def scene() -> bytes:
        async with listening(app) as port:
            return await said_to(port, data)

    return asyncio.run(scene())


@pytest.mark.process
@pytest.mark.fault("R C4")
@pytest.mark.parametrize(("data", "status"), [
    (b"", b""),
    (HEAD + b"X-A: ", b"HTTP/1.1 408"),
    (HEAD + b"Content-Length: 1\r\n\r\nx" + HEAD + b"X-A: ", b"HTTP/1.1 200"),
])  # fmt: skip
def test_a_slow_head_is_cut_off(
    data: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches sockets that keep a descriptor for ever without a request, also after a first one."""
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    assert reply_to(data).startswith(status)


@pytest.mark.process
@pytest.mark.fault("R C4")
def test_a_drip_does_not_gain_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a time limit that each byte starts anew: of a head, or of a refused body's rest."""
    monkeypatch.setattr(connections, "HEAD_S", 0.1)

    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def drip(port: int, head: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        end = asyncio.ensure_future(reader.read())
        for _ in range(2000):
            if end.done():
                break
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()
        try:
            return await asyncio.wait_for(end, WAIT_S)
        except ConnectionError:
            return b"reset"

    async def scene() -> tuple[bytes, bytes]:
        async with listening(early) as port:
            return (
                await drip(port, HEAD + b"X-A: "),
                await drip(port, HEAD + b"Content-Length: 99999\r\n\r\n"),
            )

    head, rest = asyncio.run(scene())
    assert head == b"reset" or head.startswith(b"HTTP/1.1 408")
    assert rest == b"reset" or rest.startswith(b"HTTP/1.1 401")


@pytest.mark.process
@pytest.mark.fault("R M4")
def test_a_malformed_request_gets_json_and_an_end() -> None:
    """Catches a plain text where clients look for an error's message, and a connection that goes on
    to read what follows."""
    head, _, body = reply_to(HEAD + b"A: 1\n\r\n" + HEAD + b"\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"Connection: close" in head
    assert "LF alone" in json.loads(body)["error"]["message"]


@pytest.mark.process
@pytest.mark.fault("R M6")
def test_a_body_in_crumbs_is_refused() -> None:
    """Catches an error within a body that ends as a traceback of the protocol's."""
    crumbs = b"1\r\nx\r\n" * 3 * connections.FEW_CHUNKS
    reply = reply_to(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + crumbs)
    assert reply == b"" or b"send larger" in reply


@pytest.mark.process
@pytest.mark.fault("R C4")
def test_too_many_connections() -> None:
    """Catches a newcomer that waits for ever since all places are taken by idle or slow ones."""

    async def scene() -> tuple[bytes, bytes]:
        async with listening(plain, Connections(4, 2)) as port:
            slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
            for _, writer in slow:
                writer.write(HEAD + b"X-A: ")
            served = await said_to(port, HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nxy")
            bodies = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in bodies:
                writer.write(HEAD + b"Content-Length: 2\r\n\r\nx")
            await asyncio.sleep(0.05)
            refused = await said_to(port, b"")
            for _, writer in slow + bodies:
                writer.close()
            return served, refused

    served, refused = asyncio.run(scene())
    assert served.startswith(b"HTTP/1.1 200")
    assert refused.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in refused


@pytest.mark.process
@pytest.mark.fault("R H6")
@pytest.mark.parametrize("endless", [True, False])
def test_a_reader_that_takes_nothing_is_cut_off(
    endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stream that keeps its place though nobody reads it, and a whole reply's rest."""
    monkeypatch.setattr(connections, "STALL_S", 0.05)
    ended = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100 if endless else 1):
            size = 2**20 if endless else 2**26
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": endless})
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    async def scene() -> None:
        shared = Connections(1, 1)
        async with listening(stream, shared) as port, asyncio.timeout(WAIT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            cast(Any, writer.transport).pause_reading()
            writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
            await ended.wait()
            while len(shared):
                await asyncio.sleep(0.005)
            assert not writer.transport.is_closing()  # it was not the client who left
            writer.close()

    asyncio.run(scene())
    assert ended.is_set()


@pytest.mark.process
@pytest.mark.fault("R H6")
def test_a_slow_reader_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a client that is cut off although it reads, only slowly."""
    monkeypatch.setattr(connections, "STALL_S", 0.2)
    size = 2**24

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def scene() -> int:
        async with listening(whole) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = 0
            while part := await asyncio.wait_for(reader.read(2**21), WAIT_S):
                got += len(part)
                await asyncio.sleep(0.001)
            writer.close()
            return got

    assert asyncio.run(scene()) >= size
