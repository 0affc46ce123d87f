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
            r"messages\[0\]\.content\[0\]: images are not supported yet; send only parts of type",
        ),
        ([{"role": "user", "content": [{"type": "video"}]}], r"video are not supported yet"),
        ([{"role": "user", "content": [{"type": "txt"}]}], r"content\[0\]\.type is 'txt'; use"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\.content has a lone surrogate"),
        (
            [USER | {"contents": "y"}],
            r"contents is not known for role 'user' \(did you mean 'conte",
        ),
        ([USER | {"tool_calls": [1]}], r"tool_calls is not known for role 'user'"),
        ([called(name="")], r"tool_calls\[0\]\.function\.name is missing"),
        (
            [called(name="f", arguments="{")],
            r"function\.arguments is not valid JSON .* give a JSON object",
        ),
        ([called(name="f", arguments="[]")], r"function\.arguments must be an object, got list"),
        ([called(name="f", arguments={"a": {1}})], r"arguments\.a is not a JSON value but set"),
        ([called(name="f", arguments={1: 2})], r"a key of .*arguments must be a string"),
        ([called(name="f", arguments={"a": float("nan")})], r"arguments\.a is nan"),
        ([called(name="f", arguments={"a": deep})], r"nested deeper than 64"),
        ([called(name="f", arguments="[" * 100000)], r"arguments is not valid JSON"),
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
