"""Anthropic's API."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from dgemma.params import SamplingParams
from dgemma.server.apis.messages.conversation import conversation
from dgemma.server.apis.messages.reply import ContentBlocks
from dgemma.server.apis.messages.schema import MessagesRequest
from dgemma.server.auth import Keys
from dgemma.server.settings import ServerLimits
from dgemma.types import Output, Request, ToolCall, ToolCallDelta
from tests.support.bodies import TOOLS, USED
from tests.support.client import Recorder, serve, written
from tests.support.field_walk import assert_each_counts, post
from tests.support.nano import nano

pytestmark = pytest.mark.model

PATH = "/v1/messages"
USER = [{"role": "user", "content": "Who are you?"}]
ASK: dict[str, Any] = {
    "messages": USER, "max_tokens": 24, "seed": 1, "diffusion": {"max_steps": 4},
}  # fmt: skip


def folded(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events add up to."""
    message: dict[str, Any] = {}
    arguments: dict[int, str] = {}
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = copy.deepcopy(event["message"])
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta":
            _add(message["content"][event["index"]], event["delta"], arguments, event["index"])
        elif kind == "message_delta":
            message.update(event["delta"])
            message["usage"].update(event["usage"])
            message.update({k: v for k, v in event.items() if k not in ("type", "delta", "usage")})
    for index, text in arguments.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def _add(
    block: dict[str, Any], delta: Mapping[str, Any], arguments: dict[int, str], index: int
) -> None:
    if delta["type"] == "input_json_delta":
        arguments[index] = arguments.get(index, "") + delta["partial_json"]
    else:
        field = delta["type"].removesuffix("_delta")
        block[field] += delta[field]


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each under its own name."""
    out = []
    for block in filter(None, text.split("\n\n")):
        name, _, data = block.partition("\ndata: ")
        out.append(json.loads(data))
        assert name == f"event: {out[-1]['type']}"
    return out


def ids(text: str) -> list[int]:
    return nano().frontend.tokenizer.encode(text, control=True)


def answering(*canvases: str, reason: str = "stop") -> Recorder:
    """A model that writes these canvases, whatever it is asked."""
    return Recorder(lambda request: written(request, [ids(c) for c in canvases], reason=reason))


def test_the_answer_is_chats() -> None:
    """Catches another prompt or other parameters than the same conversation has elsewhere."""
    reply = serve().post(PATH, ASK | {"system": "Be kind."}).json()
    messages = [{"role": "system", "content": "Be kind."}, *USER]
    out: Output = nano().chat(messages, SamplingParams(seed=1, max_steps=4, max_tokens=24))
    assert [part["text"] for part in reply["content"]] == [out.text] != [""]
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "nano")
    assert reply["usage"] == {
        "input_tokens": out.usage.prompt_tokens, "output_tokens": out.usage.completion_tokens
    }  # fmt: skip
    received = parsed(serve().post(PATH, ASK | {"system": "Be kind.", "stream": True}).text)
    again = folded(received)
    for name in ("content", "stop_reason", "usage", "diffusion_usage", "seed"):
        assert again[name] == reply[name]


def test_a_stream_has_anthropics_order() -> None:
    """Catches blocks that overlap, deltas of the wrong kind, and a call in the text: all three
    come in one canvas here."""
    canvas = (
        '<|channel>thought\nI add them<channel|>So:<|tool_call>call:add{a:2}<tool_call|>'
        '<|tool_call>call:add{a:3}<tool_call|>'
    )  # fmt: skip
    asked = ASK | {"stream": True, "tools": TOOLS}
    received = parsed(serve(answering(canvas)).post(PATH, asked).text)
    names = [event["type"] for event in received]
    assert names[:2] == ["message_start", "ping"] and names[-2:] == [
        "message_delta",
        "message_stop",
    ]
    opened, kinds = None, []
    for event in received:
        if event["type"] == "content_block_start":
            assert opened is None and event["index"] == len(kinds)
            opened = event["index"]
            kinds.append(event["content_block"]["type"])
        elif event["type"] == "content_block_delta":
            fits = {"thinking": "thinking_delta", "text": "text_delta"}
            kind = fits.get(kinds[-1], "input_json_delta")
            assert event["index"] == opened and event["delta"]["type"] == kind
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
    assert opened is None and kinds == ["thinking", "text", "tool_use", "tool_use"]
    message = folded(received)
    thought, text, first, second = message["content"]
    assert (thought["thinking"], text["text"]) == ("I add them", "So:")
    assert (first["name"], first["input"], second["input"]) == ("add", {"a": 2}, {"a": 3})
    assert first["id"] != second["id"] and message["stop_reason"] == "tool_use"


@pytest.mark.parametrize("canvas, more, reason, sequence", [
    ("Hello there", {}, "end_turn", None),
    ("Hello there", {"stop_sequences": ["zz", "the", "lo"]}, "stop_sequence", "lo"),
    ("Hello there", {"stop_sequences": ["ello", "el"]}, "stop_sequence", "el"),
    ("Hello there", {"stop_sequences": ["zz"]}, "end_turn", None),
])  # fmt: skip
def test_why_an_answer_ended(
    canvas: str, more: dict[str, Any], reason: str, sequence: str | None
) -> None:
    """Catches a client that waits for a tool, or goes on, since it was told the wrong reason."""
    reply = serve(answering(canvas)).post(PATH, ASK | more).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)
    if sequence:
        assert reply["content"][0]["text"] == canvas.partition(sequence)[0]
    short = serve(answering(canvas, reason="length")).post(PATH, ASK).json()
    assert short["stop_reason"] == "max_tokens"


def test_a_conversation_with_tools_is_understood() -> None:
    """Catches results that lose their call, and blocks that are dropped on the way."""
    found = conversation(MessagesRequest(messages=USED, max_tokens=1, tools=TOOLS))  # type: ignore[arg-type]
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "user"]
    assistant, result, user = found.messages[1:]
    assert assistant["content"] == "I add." and assistant["reasoning_content"] == "sum"
    assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert (result["tool_call_id"], result["content"], user["content"]) == ("t1", "4", "Well?")
    model = Recorder()
    serve(model).post(PATH, ASK | {"messages": USED, "tools": TOOLS})
    shown = nano().frontend.tokenizer.decode(model.asked[0].token_ids, control=True)
    assert "declaration:add" in shown and "I add." in shown and "Well?" in shown


def test_tool_choice() -> None:
    """Catches a call that is not forced, forced to another tool, or tools shown against the
    caller's wish."""
    calls: dict[str, Any] = {}
    prompts: dict[str, tuple[int, ...]] = {}
    for kind in ("auto", "any", "tool", "none"):
        choice: dict[str, Any] = {"type": kind} | ({"name": "add"} if kind == "tool" else {})
        model = answering("x")
        serve(model).post(PATH, ASK | {"tools": TOOLS, "tool_choice": choice})
        calls[kind], prompts[kind] = model.asked[0].tool_use, model.asked[0].token_ids
    assert calls["none"] is None and not calls["auto"].binding
    assert calls["any"].binding and calls["tool"].binding
    assert calls["any"][1] is None and calls["tool"][1] == "add"
    assert calls["any"][0][0]["function"]["parameters"] == TOOLS[0]["input_schema"]
    assert len(prompts["none"]) < len(prompts["auto"]) == len(prompts["tool"])
    reply = serve().post(PATH, ASK | {"tools": TOOLS, "tool_choice": {"type": "any"}}).json()
    assert reply["stop_reason"] in ("tool_use", "max_tokens")


def test_a_begun_answer_is_gone_on_with() -> None:
    """Catches a last assistant's turn that is closed: the answer would not continue it."""
    model = answering(" am nano")
    begun = [*USER, {"role": "assistant", "content": "I"}]
    reply = serve(model).post(PATH, ASK | {"messages": begun}).json()
    request: Request = model.asked[0]
    assert request.token_ids == (*nano().chat_ids(USER, None, False), *ids("I"))
    assert reply["content"][0]["text"] == " am nano"


def test_thinking_and_its_budget() -> None:
    """Catches a thought that is asked for and not bounded, or bounded and not asked for."""
    model = answering("<|channel>thought\nhm<channel|>yes")
    asked = ASK | {"thinking": {"type": "enabled", "budget_tokens": 7}}
    reply = serve(model).post(PATH, asked).json()
    request: Request = model.asked[0]
    assert request.params.thinking_budget == 7
    assert request.token_ids == tuple(nano().chat_ids(USER, None, True))
    assert [part["type"] for part in reply["content"]] == ["thinking", "text"]


@pytest.mark.fault("P E9")
def test_an_answer_of_a_schema() -> None:
    """Catches a schema that Anthropic's client sends and that is refused, or not kept to."""
    pytest.importorskip("llguidance")
    reply = serve().post(PATH, ASK | {"output_config": FORMAT, "max_tokens": 32}).json()
    [block] = reply["content"]
    assert list(json.loads(block["text"])) == ["a"] and reply["stop_reason"] == "end_turn"
    model = answering("x")
    serve(model).post(PATH, ASK | {"output_config": FORMAT})
    assert model.asked[0].params.json_schema == FORMAT["format"]["schema"]
    limited = serve(limits=ServerLimits(schema_bytes=20))
    assert (
        "more than this server"
        in limited.post(PATH, ASK | {"output_config": FORMAT}).json()["error"]["message"]
    )


@pytest.mark.fault("P E10")
@pytest.mark.parametrize(("config", "thinking", "asked", "most"), [
    ({"effort": "low"}, None, True, 256), ({"effort": "medium"}, None, True, 1024),
    ({"effort": "max"}, None, True, None), ({"effort": None}, None, False, None),
    ({}, None, False, None),
    ({"effort": "low"}, {"type": "adaptive"}, True, 256),
    ({"effort": "low"}, {"type": "enabled", "budget_tokens": 7}, True, 7),
    ({"effort": "low"}, {"type": "disabled"}, False, None),
])  # fmt: skip
def test_effort_bounds_the_thought(
    config: dict[str, Any], thinking: Any, asked: bool, most: int | None
) -> None:
    """Catches an effort that is refused, or that has another meaning than `reasoning_effort`."""
    model = answering("x")
    client, body = serve(model), ASK | {"output_config": config, "thinking": thinking}
    assert client.post(PATH, body).status_code == 200
    assert model.asked[0].params.thinking_budget == most
    assert model.asked[0].token_ids == tuple(nano().chat_ids(USER, None, asked))
    counted = {"messages": USER, "output_config": config, "thinking": thinking}
    tokens = client.post(f"{PATH}/count_tokens", counted).json()["input_tokens"]
    assert tokens == len(model.asked[0].token_ids)


@pytest.mark.fault("P E11")
def test_a_tool_without_a_description() -> None:
    """Catches a null where Anthropic's client may send one."""
    tools = [{**TOOLS[0], "description": None}]
    assert serve(answering("x")).post(PATH, ASK | {"tools": tools}).status_code == 200


def test_tokens_are_counted_as_they_will_be() -> None:
    """Catches a count without tools or system, by which a client would overrun the context."""
    body = {"messages": USED, "tools": TOOLS, "system": [{"type": "text", "text": "Be kind."}]}
    counted = serve().post(f"{PATH}/count_tokens", body).json()["input_tokens"]
    model = answering("x")
    serve(model).post(PATH, ASK | body)
    assert counted == len(model.asked[0].token_ids)


def test_keys_and_errors_are_anthropics() -> None:
    """Catches OpenAI's shapes on this path, which Anthropic's client cannot read."""
    locked = serve(keys=Keys.of(["secret-key"]))
    refused = locked.post(PATH, ASK)
    assert refused.status_code == 401 and refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "authentication_error"
    assert locked.post(PATH, ASK, headers={"x-api-key": "secret-key"}).status_code == 200
    wrong = serve().post(PATH, ASK | {"model": "other"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (404, "not_found_error")
    failing = Recorder(lambda request: written(request, [], reason="error", error="broke"))
    received = parsed(serve(failing).post(PATH, ASK | {"stream": True}).text)
    assert received[-1] == {"type": "error", "error": {"type": "api_error", "message": "broke"}}


FORMAT = {"format": {"type": "json_schema", "schema": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
    "additionalProperties": False}}}  # fmt: skip


@pytest.mark.parametrize("more, field", [
    ({"max_tokens": None}, "max_tokens"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
    ({"messages": [{"role": "user", "content": [USED[1]["content"][2]]}]}, "tool_use"),
    ({"messages": [*USED[:2], {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image"}]}]}]}, "image"),
    ({"messages": [*USED[:2], {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t9", "content": "4"}]}]}, "t9"),
    ({"messages": USED[:2]}, "messages"), ({"messages": [USED[1]]}, "messages"),
    ({"thinking": {"type": "enabled"}}, "budget_tokens"),
    ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "budget_tokens"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "sub"}}, "sub"),
    ({"tools": TOOLS, "tool_choice": {"type": "auto", "name": "add"}}, "name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "type"),
    ({"temperature": 1.5}, "temperature"), ({"stop_sequences": ["x"] * 33}, "stop_sequences"),
    ({"output_config": {"effort": "least"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json"}}}, "output_config.format"),
    ({"output_config": FORMAT, "tools": TOOLS, "tool_choice": {"type": "any"}},
     "output_config.format"),
    ({"output_config": FORMAT, "messages": [*USER, {"role": "assistant", "content": "{"}]},
     "output_config.format"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"minimum": "a"}}}},
     "output_config.format"),
    ({"output_format": FORMAT["format"]}, "use output_config.format"),
    ({"max_steps": 3}, "send diffusion.max_steps"),
    ({"entropy_bound": 0.1}, "send diffusion.entropy_bound"),
    ({"diffusion": {"stream": "text"}}, "stream"), ({"diffusion": {"strength": 0.5}}, "strength"),
])  # fmt: skip
def test_what_cannot_be_is_refused(more: dict[str, Any], field: str) -> None:
    """Catches blocks, tools and bounds that end as a 500 or are dropped."""
    response, _ = post(PATH, ASK | more)
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]["message"], response.text


def test_every_field_counts() -> None:
    """Catches a field that is accepted and ignored, and one that is refused without its name."""
    changed: dict[str, Any] = {
        "model": "other", "messages": [{"role": "user", "content": "Hello"}], "system": "Hm.",
        "max_tokens": 1, "tools": TOOLS, "stop_sequences": ["a"], "temperature": 0.5, "top_p": 0.5,
        "top_k": 3, "stream": True, "seed": 2, "diffusion": {"max_steps": 3},
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"},
    }  # fmt: skip
    refused = {"tool_choice": {"type": "any"}, "mode": "score"}
    idle = {"metadata", "service_tier"}
    assert_each_counts(PATH, MessagesRequest, ASK, changed=changed, refused=refused, idle=idle)


def test_blocks_without_text_are_not_opened() -> None:
    """Catches empty blocks, at which clients stumble."""
    blocks = ContentBlocks("x")
    assert blocks.close() == []
    made = ToolCallDelta(0, ToolCall(name="f", arguments={}))
    names = [event["type"] for event in blocks.of(made)]
    assert names == ["content_block_start", "content_block_delta", "content_block_stop"]
