"""Texts that cannot fit are refused before they are tokenized, and of others no more is read than
counts. Measured in characters given to the tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dgemma.server.settings import ServerLimits
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from tests.support.bodies import EDIT, MESSAGE, said
from tests.support.client import QUESTION, Client, serve
from tests.support.nano import nano

pytestmark = [pytest.mark.model, pytest.mark.fault("R C3", "R H4")]

LONG = "A line of some words, and another. " * 30_000
"""A megabyte; the model's context holds 115 kB at most."""
CHAT: list[dict[str, Any]] = [{"role": "user", "content": LONG}]
FEW: dict[str, Any] = {"max_tokens": 4, "seed": 1, "diffusion": {"max_steps": 1}}


@pytest.fixture(scope="module")
def client() -> Client:
    """An app over nano."""
    return serve()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of each text that is tokenized."""
    found: list[int] = []
    plain = Tokenizer._plain

    def counted(tokenizer: Tokenizer, text: str) -> list[int]:
        found.append(len(text))
        return plain(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "_plain", counted)
    return found


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": CHAT}),
    ("/v1/chat/completions", {"messages": [
        {"role": "user", "content": LONG[:50_000]} for _ in range(20)
    ]}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/completions", {"prompt": ["Hi", LONG]}),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 4}),
    ("/v1/messages", {"messages": [*QUESTION, {"role": "assistant", "content": LONG}],
                      "max_tokens": 4}),
    ("/v1/messages/count_tokens", {"messages": CHAT}),
    ("/tokenize", {"content": LONG}),
    ("/tokenize", {"messages": CHAT}),
    ("/apply-template", {"messages": CHAT}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": LONG}]}),
    (EDIT, said(MESSAGE.replace("<|/code_to_edit|>", LONG + "<|/code_to_edit|>"))),
    ("/v1/canvas", {"prompt": LONG, "segments": [{"text": "a"}, {"max_length": 2}]}),
    ("/v1/canvas", {"messages": CHAT, "segments": [{"text": "a"}, {"max_length": 2}]}),
    ("/v1/canvas", {"segments": [{"text": LONG}, {"choices": ["a"]}], "read_only": True}),
    ("/v1/systemone", {"state": LONG, "questions": {
        "q": {"type": "noul", "instructions": "Is it long?"}
    }}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_refused_by_length_alone(
    client: Client, read: list[int], path: str, body: dict[str, Any]
) -> None:
    """Catches seconds of work that end in a refusal which the length alone could give."""
    refused = client.post(path, body)
    assert refused.status_code == 400, refused.text[:300]
    error = refused.json()["error"]
    assert "A line of some words" not in error["message"]
    assert "a text of this length has at least" in error["message"], error
    assert error.get("code") in ("context_length_exceeded", None, 400)
    assert sum(read) < 50_000, read


CUT: list[tuple[str, dict[str, Any]]] = [
    ("/v1/fim/completions", {"prompt": LONG, "suffix": LONG}),
    ("/infill", {"input_prefix": LONG, "input_suffix": LONG}),
    ("/v1/completions", {"prompt": LONG, "suffix": LONG}),
    ("/v1/chat/completions", {"messages": QUESTION,
                              "prediction": {"type": "content", "content": LONG}}),
    ("/v1/canvas", {"segments": [{"text": LONG}, {"max_length": 2}, {"text": LONG}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CUT)
def test_no_more_is_read_than_counts(
    client: Client, read: list[int], path: str, body: dict[str, Any]
) -> None:
    """Catches megabytes that are tokenized for each window, where the model sees kilobytes."""
    fields = FEW if path != "/infill" else {**FEW, "n_predict": FEW["max_tokens"]}
    fields = {k: v for k, v in fields.items() if (path, k) != ("/infill", "max_tokens")}
    if path == "/v1/canvas":
        fields = {k: v for k, v in fields.items() if k != "max_tokens"}
    reply = client.post(path, fields | body)
    assert reply.status_code == 200, reply.text[:300]
    most = nano().facts.context * (nano().facts.tokenizer.longest or 0)
    assert max(read) < 1.1 * most and sum(read) < 4 * most, read


def test_too_many_messages_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a template that runs for minutes, since its time grows with the square."""
    rendered: list[int] = []
    monkeypatch.setattr(ChatTemplate, "encode", lambda *_, **more: rendered.append(1) or [])
    client = serve(limits=ServerLimits(messages=3))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for path, more in (
        ("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 4}), ("/tokenize", {}),
        ("/v1/messages/count_tokens", {}), ("/apply-template", {}),
        ("/v1/canvas", {"segments": [{"max_length": 2}]}),
    ):  # fmt: skip
        refused = client.post(path, {"messages": [*turns, *turns, turns[0]], **more})
        assert refused.status_code == 400, (path, refused.text)
        assert "5 members, more than this server's 3" in json.dumps(refused.json()), path
    assert not rendered
