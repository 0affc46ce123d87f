"""Work on strangers' texts in processes of their own, which may crash or be killed: grammars.

Knows processes, owners and turns. Knows nothing about grammars.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dgemma.constrain.compile_process import SIZE, framed
from dgemma.errors import EngineError, InvalidRequest, MissingExtra
from dgemma.server.errors import closing

PROCESSES = 2
"""Processes that compile. One owner holds at most all but one of them."""

START_S = 120.0
"""Seconds in which a process must have loaded the tokenizer."""

GRACE_S = 2.0
"""Seconds more than the process's own alarm after which it is killed from here."""

REMEMBERED, REMEMBERED_S = 256, 300.0
"""So many grammars that brought a process down are refused at once, for so many seconds."""


class Compiler(Protocol):
    """What the service needs of a `GrammarCompiler`."""

    async def compile(
        self, owner: str, kind: str, value: Any, known: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """See `GrammarCompiler.compile`."""
        ...

    async def close(self) -> None:
        """See `GrammarCompiler.close`."""
        ...


class WorkProcesses:
    """Processes that do one kind of work, for one event loop.

    A process that takes too long is killed and another one is started. Owners take turns.
    """

    def __init__(
        self, options: Mapping[str, Any], *, seconds: int, megabytes: int, module: str,
        processes: int = PROCESSES, work: str = "compile", library: str = "grammar library",
    ) -> None:  # fmt: skip
        """
        Args:
            options: for the processes.
            seconds: for one piece of work.
            megabytes: that a process may take beside what it loads first.
            module: what the processes run; see `compile_process.run`.
            work, library: what they do, and with what, in the words of an error.
        """
        told = {**options, "seconds": seconds, "megabytes": megabytes, "work": work,
                "library": library}  # fmt: skip
        self._command = ["-P", "-m", module, json.dumps(told)]
        self._seconds, self._work, self._library = seconds, work, library
        self._most = processes
        self._share = max(1, processes - 1)
        self._processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._line: dict[str, deque[asyncio.Future[None]]] = {}  # the next owner comes first
        self._running: Counter[str] = Counter()
        self._deadly: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._starting: set[asyncio.Task[Exception | None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start the first process.

        Raises:
            EngineError, MissingExtra: it cannot be started; says why.
        """
        self._idle.append(await self._started())

    async def compile(
        self, owner: str, kind: str, value: Any, known: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Compile a grammar. If the task is cancelled, so is the work.

        Args:
            owner: whose turn it is.
            kind, value: see `dgemma.constrain.precompiled`.
            known: asked when the turn has come; if it is true, there is nothing to do.

        Returns:
            See `Precompiled.packed`; None: it is known.

        Raises:
            InvalidRequest: it is broken, takes too long or too much memory, or crashes the library.
            MissingExtra: llguidance is not installed.
            EngineError: no process can be started.
            Refusal: 503, the server is about to stop.
        """
        message = framed({"kind": kind, "value": value})
        digest = hashlib.blake2b(message, digest_size=16).digest()
        await self._turn(owner)
        try:
            if known():
                return None
            until, why = self._deadly.get(digest, (0.0, ""))
            if asyncio.get_running_loop().time() < until:
                raise InvalidRequest(why, field=kind)
            return await self._compiled(kind, message, digest)
        finally:
            self._over(owner)

    async def close(self) -> None:
        """Kill the processes."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(process.kill() for process in list(self._processes)))
        self._processes.clear()

    # -- turns ---------------------------------------------------------------------------------

    async def _turn(self, owner: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._line.setdefault(owner, deque()).append(turn)
        self._call()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._over(owner)
            elif turn in (line := self._line.get(owner, deque())):
                line.remove(turn)
                if not line:
                    del self._line[owner]
            raise

    def _call(self) -> None:
        """Begin the turns for which there is a process."""
        while self._running.total() < self._most:
            owner = next((one for one in self._line if self._running[one] < self._share), None)
            if owner is None:
                return
            line = self._line.pop(owner)
            turn = line.popleft()
            if line:
                self._line[owner] = line  # at the end
            if not turn.done():
                self._running[owner] += 1
                turn.set_result(None)

    def _over(self, owner: str) -> None:
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._call()

    # -- processes -----------------------------------------------------------------------------

    async def _compiled(self, kind: str, message: bytes, digest: bytes) -> dict[str, Any]:
        process = await self._ready()
        try:
            async with asyncio.timeout(self._seconds + GRACE_S):
                reply = await process.ask(message)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self._replace(process)
            if self._closed:
                raise closing() from None
            why = f"{kind} {self._fault(process.status)}"
            until = asyncio.get_running_loop().time() + REMEMBERED_S
            self._deadly[digest] = until, why
            while len(self._deadly) > REMEMBERED:
                self._deadly.popitem(last=False)
            raise InvalidRequest(why, field=kind) from None
        except BaseException:
            await self._replace(process)
            raise
        if reply.get("last"):
            await self._replace(process)
        else:
            self._idle.append(process)
        return _made(reply, kind, self._work)

    def _fault(self, status: int | None) -> str:
        """What a process died of."""
        if status is None or -status in (signal.SIGKILL, getattr(signal, "SIGALRM", None)):
            return f"takes more than {self._seconds} s to {self._work}; simplify it"
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"crashes the {self._library} or takes too much memory ({name}); simplify it"

    async def _ready(self) -> _Process:
        """A process that has nothing to do."""
        while not self._idle:
            if self._closed:
                raise closing()
            if not self._starting:
                self._begin()
            done, _ = await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
            results = [task.result() for task in done if not task.cancelled()]
            failed = next((one for one in results if one is not None), None)
            if failed is not None and not self._idle:
                raise failed
        process = self._idle.pop()
        if not self._idle and len(self._processes) + len(self._starting) < self._most:
            self._begin()  # the next owner finds one ready
        return process

    async def _replace(self, process: _Process) -> None:
        """End a process and start another one, which the next grammar finds ready."""
        self._processes.discard(process)
        self._begin()
        await asyncio.shield(process.kill())

    def _begin(self) -> None:
        """Start a process aside."""
        if not self._closed:
            task = asyncio.create_task(self._prepared())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _prepared(self) -> Exception | None:
        try:
            self._idle.append(await self._started())
        except (EngineError, MissingExtra) as error:
            return error
        return None

    async def _started(self) -> _Process:
        process = _Process()
        try:
            async with asyncio.timeout(START_S):
                reply = await process.start(self._command)
        except BaseException as error:
            await process.kill()
            early = isinstance(error, asyncio.IncompleteReadError)
            if early or isinstance(error, (OSError, TimeoutError)):
                why = "it ended before it was ready" if early else repr(error)
                raise EngineError(
                    f"the process to {self._work} in cannot be started ({why}); see that "
                    f"{sys.executable} can be run and that processes and memory are left"
                ) from error
            raise
        if "ready" not in reply:
            await process.kill()
            raise EngineError(f"the process to {self._work} in failed: {reply['failed']}")
        self._processes.add(process)
        return process


class GrammarCompiler(WorkProcesses):
    """Processes that compile grammars."""

    def __init__(
        self, directory: Path, end_ids: Sequence[int], *, seconds: int, megabytes: int,
        processes: int = PROCESSES, module: str = "dgemma.constrain.compile_process",
    ) -> None:  # fmt: skip
        """
        Args:
            directory: of the checkpoint, for its tokenizer.
            end_ids: ids that end an answer.
        """
        options = {"directory": str(directory), "end_ids": list(end_ids)}
        super().__init__(
            options, seconds=seconds, megabytes=megabytes, processes=processes, module=module
        )


class _Process:
    """One process.

    Attributes:
        status: how it ended, negative by a signal; None: it runs, or was killed from here.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, command: Sequence[str]) -> dict[str, Any]:
        """Start it and wait for its first message."""
        paths = os.pathsep.join(filter(None, sys.path))
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "RAYON")}
        # In a session of its own: Ctrl-C is for the server, whose open requests may still finish.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, start_new_session=True,
            env={**os.environ, **threads, "PYTHONPATH": paths},
        )  # fmt: skip
        return await self._read()

    async def ask(self, message: bytes) -> dict[str, Any]:
        """Send a request and read the reply."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(message)
        await self._process.stdin.drain()
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        size = int.from_bytes(await self._process.stdout.readexactly(SIZE), "big")
        found: dict[str, Any] = json.loads(await self._process.stdout.readexactly(size))
        return found

    async def kill(self) -> None:
        """End it, whatever it does."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            try:
                async with asyncio.timeout(0.5 if self._at_end else 0):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                return
        self.status = process.returncode

    @property
    def _at_end(self) -> bool:
        """Whether it has closed its output: it has ended, or is about to."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.at_eof()


def _made(reply: dict[str, Any], kind: str, work: str) -> dict[str, Any]:
    """What a reply brings, or its error."""
    if "refused" in reply:
        raise InvalidRequest(reply["refused"], field=reply["field"] or kind)
    if "missing" in reply:
        raise MissingExtra(reply["missing"])
    if "failed" in reply:
        raise EngineError(f"{kind} failed to {work} ({reply['failed']})")
    made: dict[str, Any] = reply["made"]
    return made
