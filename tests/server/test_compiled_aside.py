"""Every route that takes a grammar has it compiled aside, and compiles nothing of it by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.constrain import cache
from dgemma.constrain.precompiled import precompile
from dgemma.errors import InvalidRequest
from dgemma.server.app import create_app
from dgemma.server.settings import Settings
from tests.support.client import QUESTION, Client, routes
from tests.support.nano import nano

pytestmark = [pytest.mark.model, pytest.mark.fault("R C1", "P A1", "P A5")]


class Compiler:
    """Compiles here, and keeps what it is asked.

    Attributes:
        asked: owner, kind and value of each.
    """

    def __init__(self, refused: str | None = None) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.closed = False
        self._refused = refused

    async def compile(
        self, owner: str, kind: str, value: Any, known: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """See `GrammarCompiler.compile`."""
        self.asked.append((owner, kind, value))
        if self._refused:
            raise InvalidRequest(f"{kind} {self._refused}", field=kind)
        if kind == "schema" or known():
            return None
        tokenizer, ends = nano().frontend.tokenizer, nano().facts.end_ids
        return precompile(kind, value, tokenizer, ends).packed()

    async def close(self) -> None:
        """See `GrammarCompiler.close`."""
        self.closed = True


def client_of(compiler: Compiler | None) -> Client:
    """A client of an app with it."""
    app = create_app(nano(), Settings(), compiler)
    app.router.routes = routes()
    return Client(app)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No grammar of another test is known."""
    kept = cache.GrammarCache(nano().frontend.tokenizer, nano().facts.end_ids)
    monkeypatch.setattr(nano().frontend, "_grammars", kept)


FEW: dict[str, Any] = {"seed": 1, "diffusion": {"max_steps": 4}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip
CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    (CHAT, "json_schema", {"messages": QUESTION, "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}),
    (CHAT, "json_schema", {"messages": QUESTION, "max_tokens": 8,
                           "response_format": {"type": "json_object"}}),
    (CHAT, "regex", {"messages": QUESTION, "guided_regex": "[a-c]{2}", "n": 2}),
    (CHAT, "choices", {"messages": QUESTION, "guided_choice": ["a", "b"], "stream": True}),
    (CHAT, "grammar", {"messages": QUESTION, "guided_grammar": 'start: "a" | "b"'}),
    (CHAT, "structure", {"messages": QUESTION, "max_tokens": 24,
                         "structured_outputs": {"structure": "table:a"}}),
    (TEXT, "structure", {"prompt": "Hello", "max_tokens": 24, "n": 2,
                         "diffusion": {"structure": "list:2", "max_steps": 4}}),
    (CHAT, "tools", {"messages": QUESTION, "tools": [tool("f", strict=True)]}),
    (CHAT, "tools", {"messages": QUESTION, "tools": [tool("f")], "tool_choice": "required"}),
    (TEXT, "regex", {"prompt": "Hello", "guided_regex": "[a-c]{2}", "max_tokens": 8}),
    (TEXT, "regex", {"prompt": "Hello", "guided_regex": "[a-c]{2}", "max_tokens": 8,
                     "best_of": 2}),
    (MESSAGES, "tools", {"messages": QUESTION, "max_tokens": 64, "tool_choice": {"type": "any"},
                         "tools": [{"name": "f", "input_schema": SCHEMA}]}),
    ("/v1/decisions", "schema", {"input": "The sky is blue.", "schema": SCHEMA}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "kind", "body"), ROUTES)
def test_every_route(
    path: str, kind: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a way from HTTP to the compiler that no process guards, and one grammar that is
    compiled for each of its answers."""
    body = (FEW if path != "/v1/decisions" else {"seed": 1}) | body
    compiler = Compiler()
    client = client_of(compiler)
    with monkeypatch.context() as only:
        only.setattr(cache, "make_grammar", None)
        reply = client.post(path, body)
        assert reply.status_code == 200, reply.text
        assert [asked[1] for asked in compiler.asked] == [kind]
        assert client.post(path, body).status_code == 200
        assert len(compiler.asked) == 1 + (kind == "schema"), "the second time it is known"
    nano().frontend._grammars._grammars.clear()
    refused = client_of(Compiler("is a bomb; simplify it")).post(path, body)
    assert refused.status_code == 400 and "is a bomb; simplify it" in refused.text


def test_without_a_grammar_nobody_is_asked() -> None:
    """Catches a round trip for requests that need none."""
    compiler = Compiler()
    client = client_of(compiler)
    assert client.ask().status_code == 200
    assert client.ask(tools=[tool("f")]).status_code == 200
    both = client.ask(tools=[tool("f")], tool_choice="required", guided_regex="a")
    assert both.status_code == 400 and not compiler.asked


def test_the_compiler_ends_with_the_server() -> None:
    """Catches processes that are left when the server has stopped."""
    compiler = Compiler()
    service = client_of(compiler).app.state.service

    class Model:
        def __init__(self) -> None:
            self.frontend, self.closed = nano().frontend, False

        def close(self) -> None:
            self.closed = True

    service.model = Model()
    asyncio.run(service.shut_down())
    assert compiler.closed and service.model.closed
