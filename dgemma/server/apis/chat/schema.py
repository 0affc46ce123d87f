"""`/v1/chat/completions`: OpenAI's request with vLLM's, Mercury's and our own fields, and replies.

Knows the fields and their meaning for a request to the model. Knows nothing about HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, WithJsonSchema, model_validator

from dgemma.constrain.tool_choice import tool_use
from dgemma.errors import bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import CONSTRAINT_FIELDS, SamplingParams, canvas_width
from dgemma.request_parts import ToolUse
from dgemma.server.accounting import CostedReply
from dgemma.server.choices import ChoiceFields, InvalidCall
from dgemma.server.request_body import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Body,
    at_most,
    neutral,
    refuse,
)
from dgemma.server.sampling_fields import (
    PREDICTION_STRENGTH,
    VLLM_NAMES,
    Prediction,
    SamplingFields,
)
from dgemma.server.verdict import DiffusionReply
from dgemma.types import CanvasControl

OBJECT: dict[str, Any] = {"type": "object"}
"""The schema of any JSON object."""

EFFORTS: dict[str, int | None] = {
    "none": 0, "instant": 0, "minimal": 64, "low": 256, "medium": 1024, "high": None,
    "xhigh": None, "max": None,
}  # fmt: skip
"""`reasoning_effort` -> most thought tokens; 0: no thought at all, None: no bound."""

Effort = Literal["none", "instant", "minimal", "low", "medium", "high", "xhigh", "max"]

_TEXT: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "items": {
        "type": "object", "required": ["type", "text"], "additionalProperties": False,
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    }},
]  # fmt: skip
_MAYBE = {"type": ["string", "null"]}


def _message(
    *roles: str, required: tuple[str, ...] = ("role", "content"), **fields: Any
) -> dict[str, Any]:
    return {
        "type": "object", "required": list(required), "additionalProperties": False,
        "properties": {"role": {"enum": list(roles)}, "content": {"anyOf": _TEXT}, **fields},
    }  # fmt: skip


MESSAGE: dict[str, Any] = {
    "anyOf": [
        _message("system", "developer", "user", name=_MAYBE),
        _message(
            "assistant", required=("role",), content={"anyOf": [*_TEXT, {"type": "null"}]},
            tool_calls={"type": ["array", "null"], "items": {"type": "object"}},
            name=_MAYBE, reasoning=_MAYBE, reasoning_content=_MAYBE,
            invalid_tool_calls={"type": ["array", "null"], "items": {"type": "object"}},
        ),
        _message("tool", name=_MAYBE, tool_call_id=_MAYBE),
    ],
}  # fmt: skip
"""A message for the OpenAPI document; `dgemma.text.messages` checks it."""

TOOL: dict[str, Any] = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object", "required": ["name"],
            "properties": {
                "name": {"type": "string"}, "description": _MAYBE,
                "parameters": {"type": ["object", "null"]}, "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}  # fmt: skip

Messages = Annotated[
    list[dict[str, Any]],
    Field(fail_fast=True),
    at_most(MOST_MESSAGES, "messages"),
    WithJsonSchema({"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MOST_MESSAGES}),
]
Tools = Annotated[
    list[dict[str, Any]],
    Field(fail_fast=True),
    at_most(MOST_TOOLS, "tools"),
    WithJsonSchema({"type": "array", "items": TOOL, "maxItems": MOST_TOOLS}),
]


class JsonSchema(Body):
    """A named schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="answers always keep to the schema")


class ResponseFormat(Body):
    """A constraint on the answer as a whole."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _fits(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise refuse("json_schema", "belongs to type 'json_schema', which needs it")
        return self


class StructuredOutputs(Body):
    """vLLM's form of the same."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structure: str | None = Field(default=None, description="ours: the same as in diffusion")


class TemplateOptions(Body):
    """Variables of the chat template."""

    enable_thinking: bool | None = None
    preserve_thinking: bool | None = Field(
        default=None, description="thoughts of earlier calls stay, if the template can"
    )

    @property
    def others(self) -> dict[str, Any]:
        """The variables beside `enable_thinking`."""
        return self.model_dump(exclude_none=True, exclude={"enable_thinking"})


class ChatRequest(ChoiceFields):
    """A conversation to be answered."""

    HINTS: ClassVar[Mapping[str, str]] = {
        **SamplingFields.HINTS,
        "functions": "functions are the old form; use tools",
        "function_call": "function_call is the old form; use tool_choice",
        "audio": "audio is not supported",
        "best_of": "best_of is not part of this API; use n",
    }  # fmt: skip
    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **SamplingFields.NAMES,
        "prompt": ("messages",),
        "max_tokens": ("max_tokens", "max_completion_tokens"),
        "logprobs": ("top_logprobs",),
        "thinking_budget": ("thinking_token_budget", "reasoning_effort"),
        "enable_thinking": ("chat_template_kwargs.enable_thinking",),
        "ids": (*SamplingFields.NAMES["ids"], "prediction"),
        **{
            name: (f"guided_{short}", f"structured_outputs.{short}", "response_format")
            for name, short in VLLM_NAMES.items()
        },
        "structure": ("diffusion.structure", "structured_outputs.structure"),
    }  # fmt: skip

    messages: Messages
    tools: Tools | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="false: at most the first call is handed on"
    )
    modalities: Annotated[list[str] | None, neutral(["text"], why="only text is written")] = None
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="the same as max_tokens"
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=64)
    return_tokens_as_token_ids: bool | None = Field(
        default=None, description="tokens of logprobs as 'token_id:ID'"
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0, description="0: no thought")
    chat_template_kwargs: TemplateOptions | None = None
    prediction: Prediction | None = Field(default=None, description="seeds the first canvas")
    diffusing: bool | None = Field(
        default=None, description="Mercury's drafts: a chunk's content replaces all before it"
    )

    @model_validator(mode="after")
    def _chat(self) -> ChatRequest:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) == 2:
            raise refuse("max_completion_tokens", "differs from max_tokens; drop one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", "needs logprobs: true")
        for name in ("logprob_token_ids", "return_tokens_as_token_ids"):
            if getattr(self, name) and not self.logprobs:
                raise refuse(name, "needs logprobs: true")
        if self.diffusing and not self.stream:
            raise refuse("diffusing", "needs stream: true")
        if self.diffusing and self.denoising.stream != "off":
            raise refuse("diffusing", "give diffusing or diffusion.stream, not both")
        if self.diffusing and self.mode != "diffusion":
            raise refuse("diffusing", f"shows drafts, and mode {self.mode!r} has none; drop one")
        if self.diffusing and (self.n or 1) > 1:
            raise refuse("n", "cannot be combined with diffusing, which shows one draft")
        if self.parallel_tool_calls is False and not self.tools:
            raise refuse("parallel_tool_calls", "needs tools; give some, or leave it out")
        return self

    @property
    def drafts(self) -> bool:
        """See `ChoiceFields.drafts`."""
        return bool(self.diffusing) or super().drafts

    @property
    def scored(self) -> bool:
        """See `ChoiceFields.scored`."""
        return bool(self.logprobs)

    @property
    def thinking(self) -> tuple[bool, int | None]:
        """Whether a thought is asked for, and its most tokens.

        Raises:
            InvalidRequest: fields contradict one another.
        """
        effort, budget = self.reasoning_effort, self.thinking_token_budget
        options = self.chat_template_kwargs
        asked = {
            "reasoning_effort": None if effort is None else EFFORTS[effort] != 0,
            "thinking_token_budget": None if budget is None else budget > 0,
            "enable_thinking": None if options is None else options.enable_thinking,
        }
        on = [name for name, value in asked.items() if value]
        off = [name for name, value in asked.items() if value is False]
        if on and off:
            raise bad_field(on[0], f"asks for a thought and {off[0]} for none; drop one")
        return bool(on), (budget or (EFFORTS[effort] if effort else None)) if on else None

    def constraint(self) -> dict[str, Any]:
        """See `SamplingFields.constraint`."""
        own = self.structured_outputs or StructuredOutputs()
        schema = OBJECT if own.json_object else own.json_
        asked = (schema, own.regex, own.grammar, own.choice, own.structure)
        pairs = zip(CONSTRAINT_FIELDS, asked, strict=True)
        found = [super().constraint(), {name: v for name, v in pairs if v is not None}]
        form = self.response_format
        if form is not None and form.type != "text":
            inner = form.json_schema
            found.append({"json_schema": OBJECT if inner is None else inner.schema_})
        if sum(map(bool, found)) > 1:
            others = "structured_outputs, guided_* or diffusion.structure"
            why = f"cannot be combined with {others}; choose one"
            raise bad_field("response_format", why)
        return {name: value for one in found for name, value in one.items()}

    def values(self) -> dict[str, Any]:
        """See `SamplingFields.values`."""
        found = super().values()
        if found["max_tokens"] is None:
            found["max_tokens"] = self.max_completion_tokens
        found["logprobs"] = (self.top_logprobs or 0) if self.logprobs else None
        found["thinking_budget"] = self.thinking[1]
        return found

    def called(self) -> tuple[Tools | None, ToolUse | None]:
        """The tools to show, and the calls to ask of the model.

        Raises:
            InvalidRequest: a tool choice that cannot be honoured.
        """
        choice = "auto" if self.tool_choice is None else self.tool_choice
        return None if choice == "none" else self.tools or None, tool_use(self.tools, choice)

    def canvas(self, facts: ModelFacts, params: SamplingParams) -> CanvasControl | None:
        """See `SamplingFields.canvas`; a prediction is a seed."""
        if self.prediction is None:
            return super().canvas(facts, params)
        if self.diffusion_seed_canvas is not None or self.diffusion_read_only:
            raise bad_field("prediction", "cannot be combined with diffusion_* seeds; choose one")
        if self.thinking[0]:
            raise bad_field("prediction", "needs an answer without a thought; turn thinking off")
        width = canvas_width(params, facts.canvas)
        text = facts.beginning(self.prediction.text(), width)
        ids = [*facts.tokenizer.encode(text), facts.end_id]
        ids += [facts.fill_id] * (width - len(ids))
        strength = self.denoising.strength
        return CanvasControl(
            ids=tuple(ids[:width]),
            strength=PREDICTION_STRENGTH if strength is None else strength,
        )


# -- replies ---------------------------------------------------------------------------------------


class FunctionCall(BaseModel):
    """The function and its arguments."""

    name: str
    arguments: str = Field(description="a JSON object as text")


class ToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    invalid_tool_calls: list[InvalidCall] | None = None


class TopLogprob(BaseModel):
    """A token and its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of the answer's tokens at temperature 1."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    """One of n answers."""

    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    diffusion: DiffusionReply | None = None


class ChatReply(CostedReply):
    """The plain reply; a stream's chunks fold to the same."""

    object: Literal["chat.completion"]
    choices: list[Choice]
