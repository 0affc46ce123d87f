"""Requests in Anthropic's form as the conversation that chat templates read.

Knows Anthropic's messages and blocks. Knows nothing about HTTP, streams or models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgemma.constrain.tool_choice import tool_use
from dgemma.errors import bad_field
from dgemma.request_parts import ToolUse
from dgemma.server.apis.messages.schema import (
    IMAGES,
    AnyBlock,
    CountRequest,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The input of a chat template.

    Attributes:
        messages, tools: in OpenAI's form; tools None if they are not shown.
        thinking: whether the model thinks first.
        calls: that must be made.
        prefill: the beginning of the answer.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    thinking: bool
    calls: ToolUse | None
    prefill: str = ""


def conversation(request: CountRequest) -> Conversation:
    """The conversation of a request.

    Raises:
        InvalidRequest: blocks in a wrong place, a tool result without its call, a choice
            of a tool that is not there; the message names the field.
    """
    messages: list[dict[str, Any]] = []
    if system := _joined(request.system or ""):
        messages.append({"role": "system", "content": system})
    for number, message in enumerate(request.messages):
        where = f"messages[{number}].content"
        if message.role == "user":
            messages += _user(message.content, where)
        else:
            messages.append(_assistant(message.content, where))
    thinking, _ = request.thought
    prefill = _prefill(messages, thinking)
    tools, calls = _tools(request)
    form = request.output_config and request.output_config.format
    if prefill and calls and calls.required:
        raise bad_field("tool_choice", "cannot require a call after the beginning of an answer")
    if form and (prefill or (calls and calls.required)):
        what = "the beginning of an answer" if prefill else "a required tool call"
        raise bad_field("output_config.format", f"cannot be combined with {what}; drop one of them")
    return Conversation(
        messages=messages, tools=tools, thinking=thinking, calls=calls, prefill=prefill
    )  # fmt: skip


def _prefill(messages: list[dict[str, Any]], thinking: bool) -> str:
    """Take off the text of a last assistant's message, which the answer continues."""
    if messages[-1]["role"] != "assistant":
        return ""
    last = messages.pop()
    if last.get("tool_calls") or thinking:
        raise bad_field(
            "messages", "ends with an assistant's turn that cannot be continued; end with a "
            "user's turn (after a tool call: with its tool_result)",
        )  # fmt: skip
    prefill: str = last["content"]
    if not prefill or not any(m["role"] == "user" for m in messages):
        raise bad_field("messages", "needs a user's turn, and no empty one after it")
    return prefill


def _user(blocks: Sequence[AnyBlock], where: str) -> list[dict[str, Any]]:
    """Tool results as messages of their own, then the text as a user's."""
    out: list[dict[str, Any]] = []
    texts: list[str] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            if texts:
                raise bad_field(f"{where}[{number}]", "is a tool_result; put it before all text")
            said = _joined(block.content or "", f"{where}[{number}].content")
            out.append({
                "role": "tool", "tool_call_id": block.tool_use_id,
                "content": f"Error: {said}" if block.is_error else said,
            })  # fmt: skip
        elif isinstance(block, TextBlock):
            texts.append(block.text)
        else:
            why = f"is a {block.type} block, which a user's turn cannot hold"
            raise bad_field(f"{where}[{number}]", why)
    if texts or not out:
        out.append({"role": "user", "content": "".join(texts)})
    return out


def _assistant(blocks: Sequence[AnyBlock], where: str) -> dict[str, Any]:
    texts, thoughts, calls = list[str](), list[str](), list[dict[str, Any]]()
    for number, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            why = "is a tool_result, which an assistant's turn cannot hold"
            raise bad_field(f"{where}[{number}]", why)
    out: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        out["reasoning_content"] = "\n".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return out


def _joined(content: str | Sequence[TextBlock | Mapping[str, Any]], where: str = "system") -> str:
    """The text of a system prompt or of a tool's result."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for number, block in enumerate(content):
        if isinstance(block, TextBlock):
            texts.append(block.text)
            continue
        kind, text = block.get("type"), block.get("text")
        if kind in IMAGES:
            why = f"is of type {kind!r}, which is not supported yet; send text"
            raise bad_field(f"{where}[{number}]", why)
        if kind != "text" or not isinstance(text, str):
            raise bad_field(f"{where}[{number}]", "must be a block of type 'text'")
        texts.append(text)
    return "".join(texts)


def _tools(request: CountRequest) -> tuple[list[dict[str, Any]] | None, ToolUse | None]:
    """The tools to show, and the calls to ask of the model."""
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {
            "name": tool.name, "description": tool.description or "",
            "parameters": tool.input_schema,
        }}
        for tool in request.tools or ()
    ]  # fmt: skip
    choice = request.tool_choice or ToolChoice(type="auto")
    if choice.name is not None and choice.type != "tool":
        raise bad_field("tool_choice.name", f"has no meaning with type {choice.type!r}")
    names = [tool.name for tool in request.tools or ()]
    if tools and choice.type == "tool" and choice.name not in names:
        raise bad_field("tool_choice.name", f"{choice.name!r} is none of the tools {names}")
    named = {"name": choice.name} if choice.type == "tool" else None
    wanted = named or {"any": "required"}.get(choice.type, choice.type)
    return None if wanted == "none" else tools or None, tool_use(tools, wanted)


def input_json(value: Mapping[str, Any]) -> str:
    """A call's arguments as Anthropic streams them."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
