"""Anthropic's own client against a running server: messages, stream, tools, thinking, errors.

python calls.py URL KEY
"""

from __future__ import annotations

import sys
from typing import Any

import anthropic

ASK: dict[str, Any] = {
    "model": "nano", "max_tokens": 48, "messages": [{"role": "user", "content": "Who are you?"}],
    "extra_body": {"seed": 3},
}  # fmt: skip
TOOL: dict[str, Any] = {
    "name": "get_time", "description": "Time in a city",
    "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
    },
}  # fmt: skip


def text_of(message: Any) -> str:
    """The text blocks of a message."""
    return "".join(block.text for block in message.content if block.type == "text")


def plain_and_streamed(client: anthropic.Anthropic) -> None:
    """The same answer twice, once as a stream that the client folds."""
    reply = client.messages.create(**ASK)
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", "nano"), reply
    assert text_of(reply) and reply.stop_reason in ("end_turn", "max_tokens"), reply
    assert reply.usage.input_tokens > 0 and reply.usage.output_tokens > 0
    with client.messages.stream(**ASK) as stream:
        words = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(words) > 1 and "".join(words) == text_of(reply) == text_of(final)
    assert final.stop_reason == reply.stop_reason
    assert final.usage.output_tokens == reply.usage.output_tokens
    counted = client.messages.count_tokens(model="nano", messages=ASK["messages"])
    assert counted.input_tokens == reply.usage.input_tokens
    cut = text_of(reply)[len(text_of(reply)) // 2]
    stopped = client.messages.create(**ASK, stop_sequences=[cut])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", cut)
    assert text_of(stopped) == text_of(reply)[: text_of(reply).index(cut)]


def tools(client: anthropic.Anthropic) -> None:
    """A call that must be made, streamed too, and its result sent back."""
    asked = ASK | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_time"}}
    reply = client.messages.create(**asked)
    [used] = [block for block in reply.content if block.type == "tool_use"]
    assert reply.stop_reason == "tool_use" and used.name == "get_time"
    assert isinstance(used.input["city"], str), used
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    [streamed] = [block for block in final.content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == (used.name, used.input)
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "12:30"}
    messages = [
        *ASK["messages"], {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    assert client.messages.create(**ASK | {"messages": messages, "tools": [TOOL]}).stop_reason


def thinking(client: anthropic.Anthropic) -> None:
    """A thought in blocks of its own, before the answer."""
    asked = ASK | {
        "messages": [{"role": "user", "content": "How much is 44 plus 45?"}],
        "thinking": {"type": "enabled", "budget_tokens": 32},
    }
    reply = client.messages.create(**asked)
    kinds = [block.type for block in reply.content]
    assert kinds[0] == "thinking" and reply.content[0].thinking, reply
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == kinds
    assert final.content[0].thinking == reply.content[0].thinking


def errors(client: anthropic.Anthropic) -> None:
    """Each status as the client's own exception."""
    try:
        client.messages.create(**ASK | {"extra_body": {"temprature": 1}})
    except anthropic.BadRequestError as error:
        assert "did you mean 'temperature'" in str(error), error
    else:
        raise AssertionError("an unknown field was accepted")
    try:
        client.messages.create(**ASK | {"model": "../nano"})
    except anthropic.NotFoundError as error:
        assert "not served here" in str(error), error
    else:
        raise AssertionError("a path was taken for a model's name")
    try:
        client.with_options(api_key="sk-a-wrong-key").messages.create(**ASK)
    except anthropic.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key opened the door")


def main() -> None:
    """Everything, in order."""
    url, key = sys.argv[1:]
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
        for part in (plain_and_streamed, tools, thinking, errors):
            part(client)
    print(f"anthropic {anthropic.__version__}: messages, stream, tools, thinking, errors")


if __name__ == "__main__":
    main()
