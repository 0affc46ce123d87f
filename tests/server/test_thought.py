"""Over HTTP, too, a given beginning follows the empty thought that a template leaves to the model,
and what is counted is what the model has read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.client import serve
from tests.support.nano import nano
from tests.support.templates import nano_under, open_nano
from tests.support.tokenizers import open_source

pytestmark = pytest.mark.model

ASK = [{"role": "user", "content": "Parity: 3182"}]
QUICK: dict[str, Any] = {"seed": 1, "max_tokens": 8}
SHORT = {"diffusion": {"canvas_length": 32, "max_steps": 2}}
BEGUN = [*ASK, {"role": "assistant", "content": "It is"}]
CHOICE = {
    "type": "choice",
    "name": "label",
    "instructions": "",
    "choices": [{"value": "even"}, {"value": "odd"}],
}
GIVEN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": QUICK | SHORT | {"messages": ASK, "guided_choice": ["even", "odd"]},
    "/v1/messages": {"messages": BEGUN, "max_tokens": 8, "seed": 1} | SHORT,
    "/v1/decisions": {"input": ASK, "questions": [CHOICE], "canvas_length": 32},
    "/v1/canvas": {"segments": [{"text": "It "}, {"max_length": 2}], "messages": ASK, "seed": 1}
    | SHORT,
}


@pytest.mark.parametrize("path", list(GIVEN))
def test_replies_equal_those_under_nanos_own_template(path: str) -> None:
    """Catches a route whose prompts go another way."""
    if "guided_choice" in GIVEN[path]:
        pytest.importorskip("llguidance")
    replies = []
    for model in (open_nano(), nano()):
        response = serve(model, names=("nano",)).post(path, GIVEN[path])
        assert response.status_code == 200, response.text
        replies.append(response.json())
        for name in ("id", "created", "timings"):
            replies[-1].pop(name, None)
    assert replies[0] == replies[1]


def test_a_stream_counts_what_is_read() -> None:
    """Catches a count at the beginning that differs from the one at the end, or leaves out ids."""
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "schema": {"enum": ["even", "odd"]}}
    body = {"messages": ASK, "max_tokens": 8, "stream": True, "output_config": {"format": form}}
    counts = []
    for model in (open_nano(), nano()):
        response = serve(model).post("/v1/messages", body)
        lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
        begun = json.loads(lines[0].removeprefix("data: "))
        counts.append(begun["message"]["usage"]["input_tokens"])
    assert counts[0] == counts[1] == len(nano().chat_ids(ASK))


def test_a_variable_reaches_the_template() -> None:
    """Catches a variable that is taken and dropped on the way."""
    client = serve(nano_under(open_source() + "{{- 'kept' if preserve_thinking -}}"))
    kept = {"chat_template_kwargs": {"preserve_thinking": True}}
    shown = [client.post("/apply-template", {"messages": ASK} | more).json() for more in ({}, kept)]
    assert shown[1]["prompt"] == shown[0]["prompt"] + "kept"
    usage = [
        client.post("/v1/chat/completions", {"messages": ASK, **QUICK, **SHORT} | more).json()
        for more in ({}, kept)
    ]
    counts = [reply["usage"]["prompt_tokens"] for reply in usage]
    assert counts[1] > counts[0]
