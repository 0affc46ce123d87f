"""Grammars are compiled in processes of their own: a crash costs one request, not the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from dgemma.constrain.compile_process import SIZE, framed
from dgemma.errors import EngineError, InvalidRequest
from dgemma.server.app import create_app
from dgemma.server.compiler import GrammarCompiler
from dgemma.server.settings import ServerLimits, Settings
from tests.support import bad_compiler as bad
from tests.support.client import ASK, routes
from tests.support.nano import nano
from tests.support.tokenizers import NANO

pytestmark = [pytest.mark.process, pytest.mark.fault("R C1", "P A1", "P A2", "P A5")]

BAD = "tests.support.bad_compiler"
END_IDS = (1, 106)


def compiler(module: str = BAD, **more: Any) -> GrammarCompiler:
    """One that fails on some grammars."""
    sizes = {"seconds": 1, "megabytes": 256, **more}
    return GrammarCompiler(NANO, END_IDS, module=module, **sizes)


def scene(play: Callable[[GrammarCompiler], Any], **more: Any) -> Any:
    """Play with a compiler that is closed in the end."""

    async def whole() -> Any:
        one = compiler(**more)
        try:
            return await play(one)
        finally:
            await one.close()
            assert not one._processes

    return asyncio.run(whole())


@pytest.mark.parametrize(("regex", "said"), [
    (bad.ABORT, r"crashes the grammar library .*\(SIGABRT\); simplify it"),
    (bad.ENDLESS, "takes more than 1 s to compile; simplify it"),
    (bad.BOMB, "takes more than 256 MB to compile; simplify it"),
    (bad.PANIC, r"the grammar library failed on it \(Panic\); simplify it"),
])  # fmt: skip
def test_a_bad_grammar_costs_one_request(regex: str, said: str) -> None:
    """Catches a crash, a loop or a bomb that the next request still feels."""

    async def play(one: GrammarCompiler) -> None:
        await one.start()
        for _ in range(2):  # the second time it is known
            with pytest.raises(InvalidRequest, match=said) as refused:
                await one.compile("a", "regex", regex)
            assert refused.value.field == "regex"
            made = await one.compile("a", "regex", "[a-z]+")
            assert made is not None and made["text"]

    scene(play)


def test_the_librarys_own_faults() -> None:
    """Catches a number in a schema that ends the process, as the released library does it."""

    async def play(one: GrammarCompiler) -> None:
        for value in ({"const": -(2**63)}, {"type": "integer", "multipleOf": 10**9}):
            try:
                await one.compile("a", "json_schema", value)
            except InvalidRequest as error:
                assert "json_schema" in str(error)
            assert await one.compile("a", "json_schema", {"type": "integer"})

    scene(play, module="dgemma.constrain.compile_process")


def test_an_error_of_ours_is_no_crash() -> None:
    """Catches a fault of this project that is blamed on the grammar, and a process lost by it."""

    async def play(one: GrammarCompiler) -> None:
        with pytest.raises(EngineError, match="KeyError"):
            await one.compile("a", "regex", bad.FAULT)
        (process,) = one._processes
        with pytest.raises(InvalidRequest, match="regex"):
            await one.compile("a", "regex", "(")
        assert await one.compile("a", "regex", "b") and one._processes == {process}

    scene(play)


def test_one_owners_bombs_leave_a_process_to_others() -> None:
    """Catches a small schema that waits for another key's endless ones."""

    async def play(one: GrammarCompiler) -> None:
        bombs = [
            asyncio.create_task(one.compile("a", "regex", regex))
            for regex in (bad.ENDLESS, bad.BOMB, bad.ENDLESS)
        ]
        await asyncio.sleep(0)
        for letter in "xyz":
            assert await one.compile("b", "regex", letter)
        assert not bombs[-1].done()
        for bomb in bombs:
            bomb.cancel()
        await asyncio.gather(*bombs, return_exceptions=True)
        assert await one.compile("a", "regex", "b")

    scene(play, seconds=60)


def test_owners_take_turns() -> None:
    """Catches an owner's queue that is worked off before another owner's first grammar."""
    order: list[str] = []

    async def play(one: GrammarCompiler) -> None:
        def turn(name: str) -> Callable[[], bool]:
            return lambda: order.append(name) is None

        first = asyncio.create_task(one.compile("a", "regex", "x"))
        await asyncio.sleep(0)
        tasks = [
            asyncio.create_task(one.compile(name[0], "regex", "x", turn(name)))
            for name in ("a1", "a2", "a3", "b1", "c1")
        ]
        assert await asyncio.gather(*tasks) == [None] * 5
        assert await first

    scene(play, processes=1)
    assert order == ["a1", "b1", "c1", "a2", "a3"]


def test_a_client_that_left_is_not_compiled_for() -> None:
    """Catches a process that works on for nobody, and a turn that is lost with its client."""

    async def play(one: GrammarCompiler) -> None:
        await one.start()
        (process,) = one._processes
        running, waiting = (
            asyncio.create_task(one.compile("a", "regex", bad.ENDLESS)) for _ in range(2)
        )
        await asyncio.sleep(0.01)
        for task in (waiting, running):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert process not in one._processes
        assert await one.compile("a", "regex", "b")

    scene(play, seconds=60, processes=1)


def test_it_says_why_it_cannot_start() -> None:
    """Catches a server that starts, and refuses every grammar later."""
    for module in ("tests.support.nothing_here", BAD):
        one = compiler(module)
        one._command[-1] = one._command[-1].replace("{", '{"x": "no start", ', 1)
        with pytest.raises(EngineError, match="cannot be started"):
            asyncio.run(one.start())
    one = GrammarCompiler(NANO.parent, END_IDS, seconds=1, megabytes=256)
    with pytest.raises(EngineError, match="has no tokenizer.json"):
        asyncio.run(one.start())


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_server_leaves_no_process_behind(busy: bool) -> None:
    """Catches a process that outlives its server, also in the middle of an endless grammar."""
    options = {"directory": str(NANO), "end_ids": END_IDS, "seconds": 1, "megabytes": 256}
    process = subprocess.Popen(
        [sys.executable, "-m", BAD, json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None
        size = int.from_bytes(process.stdout.read(SIZE), "big")
        assert json.loads(process.stdout.read(size)) == {"ready": True}
        if busy:
            process.stdin.write(framed({"kind": "regex", "value": bad.ENDLESS}))
        process.stdin.close()
        process.stdout.close()
        assert process.wait(60) in (0, -14)
    finally:
        process.kill()
        process.wait()


def test_it_knows_no_torch() -> None:
    """Catches a helper that takes as long to start, and as much memory, as a model."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dgemma.constrain.compile_process", "{}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "dgemma.constrain.matcher" in found.stderr
    assert "| torch" not in found.stderr


@asynccontextmanager
async def served(one: GrammarCompiler) -> Any:
    """A client of an app with a compiler."""
    app = create_app(nano(), Settings(limits=ServerLimits()), one)
    app.router.routes = routes()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.model
def test_over_http() -> None:
    """Catches a crash that is not the request's own 400, and a server that does not go on."""

    async def play(one: GrammarCompiler) -> None:
        async with served(one) as client:
            for regex in (bad.ABORT, bad.ENDLESS):
                body = ASK | {"guided_regex": regex, "stream": True}
                refused = await client.post("/v1/chat/completions", json=body)
                error = refused.json()["error"]
                assert (refused.status_code, error["param"]) == (400, "guided_regex"), error
                assert error["message"].startswith("guided_regex "), error
            body = ASK | {"guided_regex": "(yes|no)"}
            reply = await client.post("/v1/chat/completions", json=body)
            assert reply.json()["choices"][0]["message"]["content"] in ("yes", "no")
            assert (await client.get("/health")).json() == {"status": "ok"}

    scene(play)
