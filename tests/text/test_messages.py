"""Conversations that cannot be rendered are refused, with the field and the remedy named."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.errors import InvalidRequest
from dgemma.text.messages import clean_messages, clean_tools

USER = {"role": "user", "content": "x"}


def called(**function: Any) -> dict[str, Any]:
    """An assistant's message with one call."""
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}


deep: Any = "x"
for _ in range(5000):
    deep = [deep]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], r"messages is empty; give"),
        ("hello", r"messages must be a list"),
        ({"role": "user"}, r"messages must be a list"),
        (["hello"], r"messages\[0\] must be an object, got str"),
        ([{"content": "x"}], r"messages\[0\]\.role is None; use one of 'system'"),
        ([{"role": "usr", "content": "x"}], r"messages\[0\]\.role is 'usr' \(did you mean 'user'"),
        ([{"role": "<|turn>", "content": "x"}], r"messages\[0\]\.role is"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role is"),
        ([USER, {"role": "user"}], r"messages\[1\]\.content is missing; give a string"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is missing"),
        ([{"role": "assistant"}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\]\.content must be a string or a list"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\] must be an object"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\.content\[0\]: image_url is not supported yet; send only parts of",
        ),
        ([{"role": "user", "content": [{"type": "video"}]}], r"video is not supported yet"),
        ([{"role": "user", "content": [{"type": "txt"}]}], r"content\[0\]\.type is 'txt'; use"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\.content has a lone surrogate"),
        (
            [USER | {"contents": "y"}],
            r"contents is not known for role 'user' \(did you mean 'conte",
        ),
        ([USER | {"tool_calls": [1]}], r"tool_calls is not known for role 'user'"),
        ([called(name="")], r"tool_calls\[0\]\.function\.name is missing"),
        ([called(name="f", arguments=[])], r"function\.arguments must be an object, got list"),
        ([USER | {"name": 5}], r"messages\[0\]\.name must be a string, got int"),
        ([called(name="f", arguments={"a": {1}})], r"arguments\.a is not a JSON value but set"),
        ([called(name="f", arguments={1: 2})], r"a key of .*arguments must be a string"),
        ([called(name="f", arguments={"a": float("nan")})], r"arguments\.a is nan"),
        ([called(name="f", arguments={"a": deep})], r"nested deeper than 64"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], r"tool_calls must be a list"),
        ([USER, {"role": "tool", "content": "x"}], r"messages\[1\] is a tool's result without a"),
        (
            [USER, called(name="f"), {"role": "tool", "content": "x", "tool_call_id": "2"}],
            r"messages\[2\]\.tool_call_id '2' is the id of no call of messages\[1\]",
        ),
    ],
)
def test_refused_messages(messages: Any, said: str) -> None:
    """Each would else be a traceback, a prompt of nonsense, or a message lost in silence."""
    with pytest.raises(InvalidRequest, match=said):
        clean_messages(messages)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({}, r"tools must be a list"),
        ([5], r"tools\[0\] must be an object"),
        ([{"type": "function"}], r"tools\[0\]\.function is missing"),
        ([{"type": "web", "function": {"name": "f"}}], r"tools\[0\]\.type must be 'function'"),
        ([{"function": {}}], r"tools\[0\]\.function\.name is missing"),
        ([{"function": {"name": "f", "description": 5}}], r"function\.description must be a str"),
        ([{"function": {"name": "f", "parameters": []}}], r"function\.parameters must be an obj"),
        ([{"function": {"name": "f", "parameters": {"a": b""}}}], r"parameters\.a is not a JSON"),
    ],
)
def test_refused_tools(tools: Any, said: str) -> None:
    """The same for declarations."""
    with pytest.raises(InvalidRequest, match=said):
        clean_tools(tools)


def test_accepted_forms() -> None:
    """What clients really send: empty extras of OpenAI's replies, tuples, no content by a call."""
    extras: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None}
    messages = clean_messages(
        (
            {"role": "developer", "content": [{"type": "text", "text": "a"}] * 2},
            USER,
            called(name="f", arguments="") | extras | {"content": None},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
            {"role": "tool", "content": "r", "tool_call_id": "?", "name": "f"},
        )
    )
    assert messages[0] == {"role": "system", "content": "aa"}
    assert messages[2]["content"] == ""
    assert messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert clean_tools(None) is None and clean_tools([]) is None
    tools = clean_tools([{"function": {"name": "f"}}])
    assert tools == [
        {"type": "function", "function": {"name": "f", "description": "", "parameters": None}}
    ]


@pytest.mark.parametrize("kind", [[], {}, ["text"], 3, None])
def test_a_part_whose_type_is_no_word(kind: object) -> None:
    """A list as the type is no key of a table: a TypeError where a refusal belongs."""
    with pytest.raises(InvalidRequest, match="type"):
        clean_messages([{"role": "user", "content": [{"type": kind, "text": "x"}]}])


@pytest.mark.fault("P D8")
@pytest.mark.parametrize(
    "arguments",
    [
        '{"litres": ', "{", "litres=2", "[]", "null", '"x"', "[" * 100000, '{"a": NaN}',
        '{"a": "\\ud800"}', "9" * 5000, '{"a":' * 100 + "1" + "}" * 100,
    ],
)  # fmt: skip
def test_broken_arguments_do_not_end_a_conversation(
    arguments: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a call that a model wrote badly: its client sends it again with every turn."""
    messages = [USER, called(name="f", arguments=arguments), called(name="f", arguments="{}")]
    with caplog.at_level("WARNING", logger="dgemma"):
        clean = clean_messages(messages)
    assert [m["tool_calls"][0]["function"]["arguments"] for m in clean[1:]] == [{}, {}]
    [line] = caplog.messages
    assert "1 calls" in line and "messages[1].tool_calls[0].function.arguments" in line
    assert "litres" not in line, "what the user or the model wrote is not for the log"


@pytest.mark.fault("P E1", "P E2")
@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
def test_names_reach_the_template(role: str) -> None:
    """Catches a refusal of what clients for many speakers always send."""
    [message] = clean_messages([{"role": role, "name": "user_1", "content": "x"}])
    assert message["name"] == "user_1"


def test_what_a_reply_says_of_broken_calls_comes_back() -> None:
    """Catches a field of our own replies that is refused when it is sent back."""
    invalid = [{"name": "f", "text": "call:f{", "error": "a key is missing"}]
    sent = {"role": "assistant", "content": "", "invalid_tool_calls": invalid}
    assert clean_messages([sent]) == [{"role": "assistant", "content": ""}]


@pytest.mark.fault("P E11")
def test_a_tool_without_a_description() -> None:
    """Catches a null where a description may be left out."""
    tools = clean_tools([{"function": {"name": "f", "description": None}}])
    assert tools is not None and tools[0]["function"]["description"] == ""


@pytest.mark.fault("P G4")
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video", "file"])
def test_what_is_not_supported_is_named(kind: str) -> None:
    """Catches "audio are not supported": the message names the part that was sent."""
    with pytest.raises(InvalidRequest, match=f": {kind} is not supported yet; send"):
        clean_messages([{"role": "user", "content": [{"type": kind}]}])
