"""Requests in Anthropic's form.

Knows Anthropic's messages, blocks, tools and choices. Knows nothing about HTTP, streams or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dgemma.errors import bad_field
from dgemma.params import SamplingParams
from dgemma.server.apis.chat.schema import EFFORTS
from dgemma.server.choices import MODE, Decoding
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
SHOWN_NOWHERE = {"stream_interval", "stream_search", "stream_alternatives", "strength"}
"""Fields of a `diffusion` object that have no meaning here."""


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
    description: str | None = None
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


class OutputFormat(Body):
    """A schema that the answer satisfies."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of the answer, and the work that it may take."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="as reasoning_effort of /v1/chat/completions"
    )


class CountRequest(Body):
    """What a prompt is made of."""

    HINTS: ClassVar[Mapping[str, str]] = {
        **{name: Diffusion.INSIDE[name] for name in SHOWN_NOWHERE ^ set(Diffusion.INSIDE)},
        "output_format": "output_format is the old form; use output_config.format",
        "stop": "stop is OpenAI's name; use stop_sequences",
        "response_format": "response_format is OpenAI's form; use output_config.format",
        "reasoning_effort": "reasoning_effort is OpenAI's form; use output_config.effort",
    }  # fmt: skip

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
    output_config: OutputConfig | None = None

    @property
    def thought(self) -> tuple[bool, int | None]:
        """Whether a thought is asked for, and its most tokens; `thinking` goes before the effort.

        Raises:
            InvalidRequest: a bound that is missing, or has no meaning.
        """
        thinking, effort = self.thinking, self.output_config and self.output_config.effort
        budget = None
        if thinking is not None:
            budget = thinking.budget_tokens
            if (thinking.type == "enabled") != (budget is not None):
                why = "belongs to type 'enabled', which needs it; give both, or none"
                raise bad_field("thinking.budget_tokens", why)
            if thinking.type == "disabled":
                return False, None
        asked = thinking is not None or effort is not None
        return asked, budget or (EFFORTS[effort] if effort else None)


class MessageDiffusion(Diffusion):
    """How the canvas is denoised; of it nothing is shown here."""

    stream: Annotated[
        Literal["off"], neutral("off", why="drafts are shown by /v1/chat/completions alone")
    ] = "off"
    stream_interval: Annotated[int, neutral(1, why="no drafts are shown here")] = 1
    stream_search: Annotated[bool, neutral(False, why="no drafts are shown here")] = False
    stream_alternatives: Annotated[int, neutral(0, why="no drafts are shown here")] = 0
    strength: Annotated[float | None, neutral(why="there is no seed here")] = None


class Metadata(Body):
    """Whose request it is: for the caller's own books."""

    user_id: str | None = None


class MessagesRequest(CountRequest):
    """A conversation to be answered."""

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **Diffusion.PATHS, "prompt": ("messages",), "stop": ("stop_sequences",),
        "thinking_budget": ("thinking.budget_tokens", "output_config.effort"),
        "json_schema": ("output_config.format",),
    }  # fmt: skip

    max_tokens: int = bounded("max_tokens", default=...)
    stop_sequences: Stops | None = None
    temperature: Share | None = None
    top_p: float | None = bounded("top_p")
    top_k: int | None = bounded("top_k")
    stream: bool = False
    seed: int | None = bounded("seed")
    diffusion: MessageDiffusion | None = None
    mode: Decoding = MODE
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def params(self, limits: ServerLimits) -> SamplingParams:
        """See `SamplingFields.params`.

        Raises:
            InvalidRequest, Refusal: a value that cannot be honoured.
        """
        form = self.output_config and self.output_config.format
        fields = SamplingFields(
            max_tokens=self.max_tokens, stop=self.stop_sequences, temperature=self.temperature,
            top_p=self.top_p, top_k=self.top_k, seed=self.seed, diffusion=self.diffusion,
            guided_json=form.schema_ if form else None,
        )  # fmt: skip
        return fields.params(limits, thinking_budget=self.thought[1])
