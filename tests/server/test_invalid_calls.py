"""Calls that cannot be run, over HTTP: no text, no call, but a sign; streams say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dgemma.server.apis.chat.schema import ChatReply
from dgemma.server.apis.messages.reply import MessageReply
from tests.support.client import QUESTION, Client, Recorder, events, serve, written
from tests.support.nano import nano

pytestmark = pytest.mark.model

SCHEMA = {"type": "object", "properties": {"litres": {"type": "integer"}}}
CALL = {"name": "heat_kettle", "arguments": '{"litres": 2}'}
OTHER = {"name": "wipe_disk", "text": "call:wipe_disk{}", "error": "no such tool was offered"}
BROKEN = {
    "name": "heat_kettle", "text": "call:heat_kettle{2}",
    "error": "no colon after key '2'",
}  # fmt: skip
CASES: list[tuple[str, list[Any], list[Any]]] = [
    ('call:heat_kettle{"litres": 2}', [CALL], []),
    ("call:heat_kettle(litres=2)", [CALL], []),
    (json.dumps({"name": "heat_kettle", "arguments": {"litres": 2}}), [CALL], []),
    ("call:wipe_disk{}", [], [OTHER]),
    ("call:heat_kettle{2}", [], [BROKEN]),
]


def server(text: str) -> Client:
    """A model that writes a call with this text between its markers."""
    whole = f"a <|tool_call>{text}<tool_call|> b"
    ids = nano().frontend.tokenizer.encode(whole, control=True)
    return serve(Recorder(lambda request: written(request, [ids[:9], ids[9:]])))


def tool(**more: Any) -> dict[str, Any]:
    """The tool that is offered."""
    return {
        "type": "function",
        "function": {"name": "heat_kettle", "parameters": SCHEMA, **more},
    }


OFFERS: list[dict[str, Any]] = [
    {"tools": [tool()]},
    {"tools": [tool()], "tool_choice": "required"},
    {"tools": [tool(strict=True)]},
    {"tools": [tool(), {"type": "function", "function": {"name": "wipe_disk"}}],
     "tool_choice": {"type": "function", "function": {"name": "heat_kettle"}}},
]  # fmt: skip


@pytest.mark.fault("P D1", "P D3", "P D4", "P D6", "N 15")
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(("text", "calls", "invalid"), CASES)
def test_chat(text: str, calls: list[Any], invalid: list[Any], offer: dict[str, Any]) -> None:
    """Catches markers in a content, a call of a tool that nobody offered, and one that is lost."""
    client = server(text)
    reply = client.ask(**offer).json()
    ChatReply.model_validate(reply)
    message = reply["choices"][0]["message"]
    assert message["content"] == "a  b"
    assert [call["function"] for call in message.get("tool_calls", [])] == calls
    assert message.get("invalid_tool_calls", []) == invalid
    assert reply["choices"][0]["finish_reason"] == ("tool_calls" if calls else "stop")
    content, found = "", dict[str, list[Any]](tool_calls=[], invalid_tool_calls=[])
    for chunk in events(client.ask(**offer, stream=True)):
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            for name, many in found.items():
                for one in choice["delta"].get(name, []):
                    assert one["index"] == len(many)
                    many.append(one)
    assert content == "a  b"
    assert [call["function"] for call in found["tool_calls"]] == calls
    for one in found["invalid_tool_calls"]:
        del one["index"]
    assert found["invalid_tool_calls"] == invalid


@pytest.mark.fault("P D6")
@pytest.mark.parametrize("offer", [{}, {"tools": [tool()], "tool_choice": "none"}])
def test_without_tools_nothing_is_a_call(offer: dict[str, Any]) -> None:
    """Catches a call although the caller asked for none."""
    reply = server("call:heat_kettle{litres:2}").ask(**offer).json()["choices"][0]
    assert reply["finish_reason"] == "stop" and "tool_calls" not in reply["message"]
    assert reply["message"]["content"] == "a  b"
    [sign] = reply["message"]["invalid_tool_calls"]
    assert sign["error"] == "no such tool was offered" and sign["name"] == "heat_kettle"


@pytest.mark.fault("P D6")
@pytest.mark.parametrize("choice", ["auto", "any", "none"])
@pytest.mark.parametrize(("text", "calls", "invalid"), CASES)
def test_messages(text: str, calls: list[Any], invalid: list[Any], choice: str) -> None:
    """The same in Anthropic's words, and the stream adds up to the plain reply."""
    asked = {
        "messages": QUESTION, "max_tokens": 64, "tool_choice": {"type": choice},
        "tools": [{"name": "heat_kettle", "input_schema": SCHEMA}],
    }  # fmt: skip
    if choice == "none" and calls:
        calls, invalid = [], [{"name": "heat_kettle", "text": text}]
    client = server(text)
    reply = client.post("/v1/messages", asked).json()
    MessageReply.model_validate(reply)
    assert "".join(b["text"] for b in reply["content"] if b["type"] == "text") == "a  b"
    used = [block for block in reply["content"] if block["type"] == "tool_use"]
    assert [(u["name"], u["input"]) for u in used] == [
        ("heat_kettle", {"litres": 2}) for _ in calls
    ]
    assert reply["stop_reason"] == ("tool_use" if calls else "end_turn")
    signs = reply.get("invalid_tool_calls", [])
    assert [sign["text"] for sign in signs] == [one["text"] for one in invalid]
    lines = client.post("/v1/messages", asked | {"stream": True}).text.splitlines()
    streamed = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    [last] = [event for event in streamed if event["type"] == "message_delta"]
    assert last["delta"]["stop_reason"] == reply["stop_reason"]
    assert last.get("invalid_tool_calls", []) == signs
    shown = json.dumps([event for event in streamed if event["type"] == "content_block_delta"])
    assert "tool_call" not in shown and "wipe_disk" not in shown


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_reply_can_be_sent_back(path: str) -> None:
    """Catches a client that appends the reply to its messages and is refused from then on."""
    client = server("call:wipe_disk{}")
    reply = client.post(path, {"messages": QUESTION, "max_tokens": 64}).json()
    answer = (
        reply["choices"][0]["message"]
        if "choices" in reply
        else {"role": "assistant", "content": reply["content"]}
    )
    more = [*QUESTION, answer, *QUESTION]
    assert client.post(path, {"messages": more, "max_tokens": 64}).status_code == 200
