"""An answer in Anthropic's form: the events of its stream, and the message they fold to.

Knows content blocks, event names and stop reasons. Knows nothing about HTTP or how text comes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dgemma.server.apis.messages.schema import input_json
from dgemma.server.reply_schema import DiffusionUsage, Timings
from dgemma.text.parse import Delta
from dgemma.types import Output, ToolCall

Event = dict[str, Any]
PING: Event = {"type": "ping"}


class ContentBlocks:
    """Turns pieces of an answer into the events of its content blocks, in the order they come."""

    def __init__(self, answer_id: str) -> None:
        """`answer_id` makes the ids of the calls."""
        self._id = answer_id
        self._index = -1
        self._open = ""
        self._calls = 0

    def add(self, delta: Delta) -> list[Event]:
        """The events of one more piece."""
        kind, value = delta
        if isinstance(value, ToolCall):
            return [*self.close(), *self._call(value)]
        if not value:
            return []
        out: list[Event] = []
        if self._open != kind:
            out += self.close()
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            out.append(self._start(kind, block))
        out.append(self._delta({"type": f"{kind}_delta", kind: value}))
        return out

    def close(self) -> list[Event]:
        """End the block that is open."""
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._index}]

    def _call(self, call: ToolCall) -> list[Event]:
        self._calls += 1
        name = f"toolu_{self._id}_{self._calls}"
        block = {"type": "tool_use", "id": name, "name": call.name, "input": {}}
        start = self._start("tool_use", block)
        text = input_json(call.arguments)
        piece = self._delta({"type": "input_json_delta", "partial_json": text})
        return [start, piece, *self.close()]

    def _start(self, kind: str, block: Mapping[str, Any]) -> Event:
        self._index += 1
        self._open = kind
        return {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    def _delta(self, delta: Mapping[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": dict(delta)}


def begin(answer_id: str, model: str, input_tokens: int) -> Event:
    """The first event."""
    message: dict[str, Any] = {
        "id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": model,
        "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": 0},
    }  # fmt: skip
    return {"type": "message_start", "message": message}


def end(output: Output, usage: Mapping[str, Any], extra: Mapping[str, Any]) -> list[Event]:
    """The last two events; `extra` are fields that Anthropic does not have."""
    delta = {"stop_reason": stop_reason(output), "stop_sequence": output.stopped_by}
    return [
        {"type": "message_delta", "delta": delta, "usage": dict(usage), **extra},
        {"type": "message_stop"},
    ]


def stop_reason(output: Output) -> str:
    """Why the answer ended, in Anthropic's words."""
    if output.finish_reason == "length":
        return "max_tokens"
    if output.stopped_by is not None:
        return "stop_sequence"
    return "tool_use" if output.tool_calls else "end_turn"


def folded(events: Iterable[Event]) -> dict[str, Any]:
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


# -- the message as the OpenAPI document shows it --------------------------------------------------


class TextContent(BaseModel):
    """A piece of the answer."""

    type: Literal["text"]
    text: str


class ThinkingContent(BaseModel):
    """The thought, which nobody signs here."""

    type: Literal["thinking"]
    thinking: str
    signature: Literal[""]


class ToolUseContent(BaseModel):
    """A call that the model asks for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnyContent = Annotated[TextContent | ThinkingContent | ToolUseContent, Field(discriminator="type")]


class InputTokens(BaseModel):
    """The length of a prompt."""

    input_tokens: int


class MessageUsage(InputTokens):
    """Tokens in Anthropic's words."""

    output_tokens: int


class MessageReply(BaseModel):
    """The plain reply; a stream's events fold to the same."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnyContent]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage
    diffusion_usage: DiffusionUsage
    timings: Timings
    seed: int = Field(description="given or drawn")
