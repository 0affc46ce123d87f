"""The running server: its socket, its share of the descriptors, signals, the time until it stops.

uvicorn runs the event loop. Knows the process. Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from dgemma.server.connections import KEEP_S, Connection, Connections
from dgemma.server.service import Service
from dgemma.server.settings import BACKLOG, ServerLimits

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

ACCEPTS = 32
"""Connections that one turn of the event loop accepts: the bound holds only once they are known."""

RESERVED = 128
"""Descriptors that are left to everything but connections."""

NO_ROOM = "socket.accept() out of system resource"
"""What asyncio says when there is no descriptor for a new connection."""


def descriptors() -> int | None:
    """The files and sockets that this process may open; None: no bound is known."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def connections_of(limits: ServerLimits, files: int | None) -> Connections:
    """The bounds on connections; if the process may open fewer files, both shrink alike.

    Args:
        files: see `descriptors`.
    """
    most, each = limits.connections, limits.connections_per_address
    room = most if files is None else max(files - RESERVED, files // 2)
    if room >= most:
        return Connections(most, each, limits.connections_per_second)
    each = max(1, min(each, most) * room // most)
    return Connections(room, each, limits.connections_per_second)


class Server(uvicorn.Server):
    """uvicorn's server, which ends open requests when the grace is over: each stream says so."""

    def __init__(
        self, app: FastAPI, bound: socket.socket, prepare: Callable[[], Awaitable[None]],
        ready: Callable[[str], None],
    ) -> None:  # fmt: skip
        """
        Args:
            bound: a socket that listens.
            prepare: what must be done before the first request.
            ready: is told the server's address when it answers.
        """
        self._service: Service = app.state.service
        self._bound, self._prepare, self._ready = bound, prepare, ready
        self.shared = connections_of(self._service.settings.limits, descriptors())
        grace = self._service.settings.grace_s
        super().__init__(uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", ws="none", backlog=ACCEPTS,
            http=cast(Any, partial(Connection, self.shared)), timeout_keep_alive=KEEP_S,
            timeout_graceful_shutdown=int(grace) + 5,
        ))  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        asyncio.get_running_loop().set_exception_handler(self._trouble)
        await self._prepare()
        await super().startup(sockets)
        self._bound.listen(BACKLOG)  # uvicorn has set it to ACCEPTS
        gc.collect()
        gc.freeze()  # the model stays: each later collection looks at requests alone
        host, port = self._bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._ready(f"http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        self._service.turn_away()
        grace = self._service.settings.grace_s
        said = (
            f"stopping: open requests may finish, up to {grace:g} s; press Ctrl-C again to stop at "
            "once"
        )
        print(said, file=sys.stderr, flush=True)
        asyncio.get_running_loop().call_later(grace, self._service.end_all)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`; a second interrupt ends the process without any further word."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(128 + sig)  # threads may be at work for long, and nothing is to be saved
        super().handle_exit(sig, frame)

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Tell of a lack of descriptors once a minute, of all else as asyncio does."""
        if context.get("message") == NO_ROOM:
            why = f"no connection can be accepted: {context.get('exception')}; raise `ulimit -n`"
            self.shared.seldom.warn("descriptors", why)
        else:
            loop.default_exception_handler(context)
