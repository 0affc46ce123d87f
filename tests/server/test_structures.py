"""Markdown by name over HTTP: wherever a grammar is taken, under each of its names."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.params import SamplingParams
from tests.support.client import ASK, QUESTION, events, serve
from tests.support.markdown import table
from tests.support.nano import nano

pytestmark = pytest.mark.model

STRUCTURE = "table:a,b;rows=1"
INSIDE: dict[str, Any] = {"diffusion": {"structure": STRUCTURE, "max_steps": 4}}


def test_chats_and_messages() -> None:
    """Catches a name of the field that does not reach the model, or a stream that is cut."""
    params = SamplingParams(seed=1, max_tokens=40, max_steps=4, structure=STRUCTURE)
    expected = nano().chat(QUESTION, params).text
    assert table(expected)[0] == ["a", "b"]
    client, body = serve(), {"messages": QUESTION, "max_tokens": 40, "seed": 1}
    path = "/v1/chat/completions"
    other = {"structured_outputs": {"structure": STRUCTURE}, "diffusion": {"max_steps": 4}}
    for more in (INSIDE, other):
        reply = client.post(path, body | more)
        assert reply.json()["choices"][0]["message"]["content"] == expected, reply.text
    chunks = events(client.post(path, body | INSIDE | {"stream": True}))
    pieces = [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]]
    assert "".join(pieces) == expected
    assert client.post("/v1/messages", body | INSIDE).json()["content"][0]["text"] == expected
    text = client.post("/v1/completions", {"prompt": "a", "max_tokens": 40, "seed": 1} | INSIDE)
    table(text.json()["choices"][0]["text"])


@pytest.mark.parametrize(("path", "body", "said"), [
    ("/v1/chat/completions", {**ASK, "diffusion": {"structure": "tabel"}},
     "diffusion.structure 'tabel' is not known (did you mean 'table'?)"),
    ("/v1/chat/completions", {**ASK, "structured_outputs": {"structure": "list:x"}},
     "structured_outputs.structure has 'x' as the number"),
    ("/v1/chat/completions", {**ASK, "structure": "list"}, "send diffusion.structure"),
    ("/v1/chat/completions", {**ASK, **INSIDE, "structured_outputs": {"structure": "list"}},
     "choose one"),
    ("/v1/chat/completions", {**ASK, **INSIDE, "guided_regex": "a"}, "choose one"),
    ("/v1/chat/completions", {**ASK, **INSIDE, "response_format": {"type": "json_object"}},
     "diffusion.structure; choose one"),
    ("/v1/fim/completions", {"prompt": "a", "suffix": "b", **INSIDE}, "diffusion.structure"),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", **INSIDE}, "diffusion.structure"),
    ("/v1/canvas", {"segments": [{"text": "a"}, {}], **INSIDE}, "diffusion.structure"),
    ("/v1/canvas", {"segments": [{"role": "seed", "text": "a"}], **INSIDE}, "diffusion.structure"),
])  # fmt: skip
def test_refusals(path: str, body: dict[str, Any], said: str) -> None:
    """Catches a field that is dropped, that wins over another, or whose error names another."""
    reply = serve().post(path, body)
    assert reply.status_code == 400 and said in reply.text, reply.text
