"""An answer in Anthropic's form: the events of its stream, and the message that they add up to.

Knows content blocks, event names and stop reasons. Knows nothing about HTTP or how text comes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dgemma.server import sse
from dgemma.server.accounting import DiffusionUsage, Timings, costs_beside
from dgemma.server.apis.messages.conversation import input_json
from dgemma.server.choices import InvalidCall, invalid_tool_call
from dgemma.server.exchange import Exchange
from dgemma.server.frames import milliseconds
from dgemma.server.pieces import End, Moment, Piece, PieceReader
from dgemma.server.verdict import VerdictReply, verdict_reply
from dgemma.types import Output, TextDelta, ThoughtDelta, ToolCall, ToolCallDelta

Event = dict[str, Any]
PING: Event = {"type": "ping"}


class ContentBlocks:
    """Turns pieces of an answer into the events of its content blocks, in the order they come.

    Attributes:
        content: the blocks so far.
    """

    def __init__(self, answer_id: str) -> None:
        """`answer_id` makes the ids of the calls."""
        self._id = answer_id
        self.content: list[dict[str, Any]] = []
        self._open = ""
        self._calls = 0

    def of(self, piece: Piece) -> list[Event]:
        """The events of one more piece; none of a piece that is not part of the answer."""
        if isinstance(piece, ToolCallDelta):
            return [*self.close(), *self._call(piece.call)]
        if isinstance(piece, TextDelta):
            return self._add("text", piece.text)
        if isinstance(piece, ThoughtDelta):
            return self._add("thinking", piece.text)
        return self.close() if isinstance(piece, End) else []

    def _add(self, kind: str, value: str) -> list[Event]:
        out: list[Event] = []
        if self._open != kind:
            out += self.close()
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            out.append(self._start(kind, block))
        self.content[-1][kind] += value
        out.append(self._delta({"type": f"{kind}_delta", kind: value}))
        return out

    def close(self) -> list[Event]:
        """End the block that is open."""
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": len(self.content) - 1}]

    def _call(self, call: ToolCall) -> list[Event]:
        self._calls += 1
        name = f"toolu_{self._id}_{self._calls}"
        block = {"type": "tool_use", "id": name, "name": call.name, "input": {}}
        start = self._start("tool_use", block)
        self.content[-1]["input"] = dict(call.arguments)
        text = input_json(call.arguments)
        piece = self._delta({"type": "input_json_delta", "partial_json": text})
        return [start, piece, *self.close()]

    def _start(self, kind: str, block: Mapping[str, Any]) -> Event:
        index, self._open = len(self.content), kind
        self.content.append(dict(block))
        return {"type": "content_block_start", "index": index, "content_block": dict(block)}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}


class MessageEvents:
    """The events of one answer, which add up to the plain reply."""

    def __init__(self, exchange: Exchange, reader: PieceReader, input_tokens: int) -> None:
        """`input_tokens` is the length of the prompt."""
        self._exchange = exchange
        self._reader = reader
        answer_id = secrets.token_hex(12)
        self._blocks = ContentBlocks(answer_id)
        self._message: dict[str, Any] = {
            "id": f"msg_{answer_id}", "type": "message", "role": "assistant",
            "model": exchange.service.name, "content": [], "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": input_tokens, "output_tokens": 0},
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The plain reply."""
        async with aclosing(self._events()) as source:
            *_, ended, _ = [event async for event in source]
        beside = {name: value for name, value in ended.items() if name not in ("type", "delta")}
        return {**self._message, "content": self._blocks.content, **ended["delta"], **beside}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The same as a stream."""
        async with aclosing(self._events()) as source:
            async for event in source:
                yield sse.event(event, event["type"])

    async def _events(self) -> AsyncGenerator[Event, None]:
        yield {"type": "message_start", "message": self._message}
        yield PING
        when: Event = {}  # of the deltas, in modes without a canvas
        async with aclosing(self._reader.pieces()) as source:
            async for piece in source:
                if isinstance(piece, Moment):
                    when = {"t_ms": milliseconds(piece.t_ms)}
                for event in self._blocks.of(piece):
                    yield event | when if event["type"] == "content_block_delta" else event
                if isinstance(piece, End):
                    self._exchange.count([piece])
                    yield last(piece)
                    yield {"type": "message_stop"}


def last(end: End) -> Event:
    """The last event before the stop, with fields that Anthropic does not have."""
    output, spent = end.output, end.output.usage
    beside = costs_beside([end])
    invalid = [invalid_tool_call(call) for call in output.invalid_tool_calls]
    return {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason(output), "stop_sequence": output.stopped_by},
        "usage": {"input_tokens": spent.prompt_tokens, "output_tokens": spent.completion_tokens},
        "diffusion_usage": beside["diffusion_usage"], "timings": beside["timings"],
        "seed": output.seed, "restart_after": output.restart_after,
        **({"invalid_tool_calls": invalid} if invalid else {}),
        **({} if output.verdict is None else {"verdict": verdict_reply(output.verdict)}),
    }  # fmt: skip


def stop_reason(output: Output) -> str:
    """Why the answer ended, in Anthropic's words."""
    if output.finish_reason == "length":
        return "max_tokens"
    if output.stopped_by is not None:
        return "stop_sequence"
    return "tool_use" if output.tool_calls else "end_turn"


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
    restart_after: int = Field(description="the number used; 0: never")
    verdict: VerdictReply | None = Field(default=None, description="on request")
    invalid_tool_calls: list[InvalidCall] | None = None
