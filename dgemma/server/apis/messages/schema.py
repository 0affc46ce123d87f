"""Requests in Anthropic's form, and the same as the conversation that chat templates read.

Knows Anthropic's messages, blocks, tools and choices. Knows nothing about HTTP, streams or models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dgemma.constrain.tool_choice import tool_use
from dgemma.errors import bad_field
from dgemma.params import SamplingParams
from dgemma.request_parts import ToolUse
from dgemma.server.request_body import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Body,
    at_most,
    neutral,
    refuse,
)
from dgemma.server.sampling_fields import (
    Diffusion,
    SamplingFields,
    Share,
    Stops,
    bounded,
)
from dgemma.server.settings import ServerLimits

IMAGES = ("image", "document")


class CacheControl(Body):
    """A hint that cannot change a result: prompts are cached here without it."""

    type: Literal["ephemeral"] = "ephemeral"
    ttl: str | None = None


class _Block(Body):
    cache_control: CacheControl | None = None


class TextBlock(_Block):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(Body):
    """A thought of an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(_Block):
    """A call of an earlier answer, as clients send it back: with fields that hold nothing."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None


class ToolResultBlock(_Block):
    """What a tool said."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool = False


AnyBlock = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


def _blocks(content: Any) -> Any:
    """A text as one block; images are refused by name."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and len(content) > MOST_MESSAGES:
        raise refuse("", f"holds {len(content)} blocks, more than {MOST_MESSAGES}; give fewer")
    for block in content if isinstance(content, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in IMAGES:
            raise refuse("", f"{kind} blocks are not supported yet; send text")
    return content


class Message(Body):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Annotated[
        list[AnyBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[AnyBlock])
    ]


class Tool(_Block):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1)
    description: str = ""
    input_schema: dict[str, Any]


class ToolChoice(Body):
    """Whether, and which, tool must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = Field(
        default=None, description="true: at most the first call is handed on"
    )


class Thinking(Body):
    """Whether the model thinks first, and how much."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=1)


class CountRequest(Body):
    """What a prompt is made of."""

    model: str | None = None
    messages: Annotated[
        list[Message], Field(fail_fast=True), at_most(MOST_MESSAGES, "messages")
    ] = Field(min_length=1, max_length=MOST_MESSAGES)
    system: (
        Annotated[
            list[TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock])
        ]
        | None
    ) = None
    tools: Annotated[list[Tool] | None, Field(fail_fast=True), at_most(MOST_TOOLS, "tools")] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessageDiffusion(Diffusion):
    """How the canvas is denoised; of it nothing is shown here."""

    stream: Annotated[
        Literal["off"], neutral("off", why="drafts are shown by /v1/chat/completions alone")
    ] = "off"
    stream_interval: Annotated[int, neutral(1, why="no drafts are shown here")] = 1
    stream_search: Annotated[bool, neutral(False, why="no drafts are shown here")] = False
    strength: Annotated[float | None, neutral(why="there is no seed here")] = None


class Metadata(Body):
    """Whose request it is: for the caller's own books."""

    user_id: str | None = None


class MessagesRequest(CountRequest):
    """A conversation to be answered."""

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **Diffusion.PATHS, "prompt": ("messages",), "stop": ("stop_sequences",),
        "thinking_budget": ("thinking.budget_tokens",),
    }  # fmt: skip

    max_tokens: int = bounded("max_tokens", default=...)
    stop_sequences: Stops | None = None
    temperature: Share | None = None
    top_p: float | None = bounded("top_p")
    top_k: int | None = bounded("top_k")
    stream: bool = False
    seed: int | None = bounded("seed")
    diffusion: MessageDiffusion | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def params(self, limits: ServerLimits) -> SamplingParams:
        """See `SamplingFields.params`.

        Raises:
            InvalidRequest, Refusal: a value that cannot be honoured.
        """
        fields = SamplingFields(
            max_tokens=self.max_tokens, stop=self.stop_sequences, temperature=self.temperature,
            top_p=self.top_p, top_k=self.top_k, seed=self.seed, diffusion=self.diffusion,
        )  # fmt: skip
        budget = None if self.thinking is None else self.thinking.budget_tokens
        return fields.params(limits, thinking_budget=budget)


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
    thinking = _thinks(request.thinking)
    prefill = _prefill(messages, thinking)
    tools, calls = _tools(request)
    if prefill and calls:
        raise bad_field("tool_choice", "cannot require a call after the beginning of an answer")
    return Conversation(
        messages=messages, tools=tools, thinking=thinking, calls=calls, prefill=prefill
    )  # fmt: skip


def _thinks(thinking: Thinking | None) -> bool:
    """Whether the model thinks first.

    Raises:
        InvalidRequest: a bound that is missing, or has no meaning.
    """
    if thinking is None:
        return False
    if (thinking.type == "enabled") != (thinking.budget_tokens is not None):
        why = "belongs to type 'enabled', which needs it; give both, or none"
        raise bad_field("thinking.budget_tokens", why)
    return thinking.type != "disabled"


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
            "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
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
