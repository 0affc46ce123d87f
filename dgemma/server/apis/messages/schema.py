"""Requests in Anthropic's form, and the same as the conversation that chat templates read.

Knows Anthropic's messages, blocks, tools and choices. Knows nothing about HTTP, streams or models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dgemma.constrain.cache import Calls
from dgemma.errors import InvalidRequest
from dgemma.server.request_body import Body, neutral, refuse
from dgemma.server.sampling_fields import Diffusion, SamplingFields, Stops, bounded

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
    """A text as the one block that it stands for; images are refused by name."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
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
    messages: list[Message] = Field(min_length=1)
    system: (
        Annotated[
            list[TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock])
        ]
        | None
    ) = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessageDiffusion(Diffusion):
    """How the canvas is denoised; of it nothing is shown here."""

    stream: Annotated[
        Literal["off"], neutral("off", why="drafts are shown by /v1/chat/completions alone")
    ] = "off"
    stream_interval: Annotated[int, neutral(1, why="no drafts are shown here")] = 1
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
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = bounded("top_p")
    top_k: int | None = bounded("top_k")
    stream: bool = False
    seed: int | None = bounded("seed")
    diffusion: MessageDiffusion | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def drawing(self) -> SamplingFields:
        """How it is drawn, in the words of all other routes."""
        return _Drawing(
            max_tokens=self.max_tokens, stop=self.stop_sequences, temperature=self.temperature,
            top_p=self.top_p, top_k=self.top_k, seed=self.seed, diffusion=self.diffusion,
            thinking_budget=None if self.thinking is None else self.thinking.budget_tokens,
        )  # fmt: skip


class _Drawing(SamplingFields):
    """With Anthropic's bound of the thought."""

    thinking_budget: int | None = None

    def values(self) -> dict[str, Any]:
        """See `SamplingFields.values`."""
        return super().values() | {"thinking_budget": self.thinking_budget}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages, tools: in OpenAI's form; tools None where they are not shown.
        thinking: whether the model thinks first.
        calls: what must be called.
        begun: text that the answer begins with already.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    thinking: bool
    calls: Calls | None
    begun: str = ""


def conversation(request: CountRequest) -> Conversation:
    """A request as the conversation that it means.

    Raises:
        InvalidRequest: blocks where they cannot stand, a tool result without its call, a choice
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
    begun = _begun(messages, thinking)
    tools, calls = _tools(request)
    if begun and calls:
        raise InvalidRequest(
            "tool_choice: an answer that is begun cannot be made to call a tool",
            field="tool_choice",
        )
    return Conversation(
        messages=messages, tools=tools, thinking=thinking, calls=calls, begun=begun
    )  # fmt: skip


def _thinks(thinking: Thinking | None) -> bool:
    """Whether the model thinks first.

    Raises:
        InvalidRequest: a bound that is missing, or has no meaning.
    """
    if thinking is None:
        return False
    if (thinking.type == "enabled") != (thinking.budget_tokens is not None):
        raise InvalidRequest(
            "thinking.budget_tokens belongs to type 'enabled', which needs it; give both, or none",
            field="thinking.budget_tokens",
        )
    return thinking.type != "disabled"


def _begun(messages: list[dict[str, Any]], thinking: bool) -> str:
    """Take the text of a last assistant's message off: the answer goes on from it."""
    if messages[-1]["role"] != "assistant":
        return ""
    last = messages.pop()
    if last.get("tool_calls") or thinking:
        raise InvalidRequest(
            "messages end with an assistant's turn that cannot be gone on with; end with a "
            "user's turn (where it calls a tool: with the tool_result)",
            field="messages",
        )
    begun: str = last["content"]
    if not begun or not any(m["role"] == "user" for m in messages):
        raise InvalidRequest(
            "messages need a user's turn, and no empty one behind it", field="messages"
        )
    return begun


def _user(blocks: Sequence[AnyBlock], where: str) -> list[dict[str, Any]]:
    """Tool results as messages of their own, then the text as a user's."""
    out: list[dict[str, Any]] = []
    texts: list[str] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            if texts:
                raise InvalidRequest(
                    f"{where}[{number}]: tool_result blocks come first, text behind them",
                    field=f"{where}[{number}]",
                )
            said = _joined(block.content or "", f"{where}[{number}].content")
            out.append({
                "role": "tool", "tool_call_id": block.tool_use_id,
                "content": f"Error: {said}" if block.is_error else said,
            })  # fmt: skip
        elif isinstance(block, TextBlock):
            texts.append(block.text)
        else:
            raise InvalidRequest(
                f"{where}[{number}]: a user's turn holds no {block.type} block",
                field=f"{where}[{number}]",
            )
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
            raise InvalidRequest(
                f"{where}[{number}]: an assistant's turn holds no tool_result",
                field=f"{where}[{number}]",
            )
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
            raise InvalidRequest(
                f"{where}[{number}]: {kind}s are not supported yet; send text",
                field=f"{where}[{number}]",
            )
        if kind != "text" or not isinstance(text, str):
            raise InvalidRequest(
                f"{where}[{number}] must be a block of type 'text'", field=f"{where}[{number}]"
            )
        texts.append(text)
    return "".join(texts)


def _tools(
    request: CountRequest,
) -> tuple[list[dict[str, Any]] | None, Calls | None]:
    """Tools as they are shown, and what must be called."""
    tools = [
        {"type": "function", "function": {
            "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
        }}
        for tool in request.tools or ()
    ]  # fmt: skip
    choice = request.tool_choice
    if choice is None:
        return tools or None, None
    if choice.name is not None and choice.type != "tool":
        raise InvalidRequest(
            f"tool_choice.name has no meaning with type {choice.type!r}", field="tool_choice.name"
        )
    if choice.type in ("any", "tool") and not tools:
        raise InvalidRequest(
            "tool_choice needs tools; give some, or leave it out", field="tool_choice"
        )
    if choice.type == "tool":
        names = [tool["function"]["name"] for tool in tools]  # type: ignore[index]
        if choice.name not in names:
            raise InvalidRequest(
                f"tool_choice.name {choice.name!r} is none of the tools {names}",
                field="tool_choice.name",
            )
        return tools, Calls(tools, choice.name)
    if choice.type == "none":
        return None, None
    return tools or None, Calls(tools) if choice.type == "any" else None


def input_json(value: Mapping[str, Any]) -> str:
    """A call's arguments as Anthropic streams them."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
