"""What replies of several APIs share: usage, costs on the canvas, and the shapes of errors.

For the OpenAPI document and for clients in typed languages. Knows nothing about how they are made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class OpenAIErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIErrorBody


class AnthropicErrorBody(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorBody


class PlainErrorBody(BaseModel):
    """What went wrong."""

    code: int
    message: str
    type: str


class PlainError(BaseModel):
    """An error in llama.cpp's shape."""

    error: PlainErrorBody


_STATUSES = {
    400: "the request cannot be honoured; the message names the field",
    401: "no API key, or a wrong one",
    404: "no such model or path",
    405: "the path takes another method",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "too many requests are open; see Retry-After",
    500: "the server failed",
    503: "the server is shutting down",
}


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for `responses=`."""
    return {status: {"model": model, "description": about} for status, about in _STATUSES.items()}


ERRORS = errors(OpenAIError)
ANTHROPIC_ERRORS = errors(AnthropicError)
PLAIN_ERRORS = errors(PlainError)


class CompletionDetails(BaseModel):
    """What the completion tokens were."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens in OpenAI's words."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class DiffusionUsage(BaseModel):
    """What the answer cost on the canvas."""

    canvases: int
    steps: int = Field(description="denoising steps of all canvases")
    canvas_tokens: int = Field(description="positions of all canvases, committed or cut off")
    tokens_per_step: float = Field(description="committed tokens per denoising step")


class Timings(BaseModel):
    """Times in milliseconds, and the three rates that are all called tokens per second."""

    ttf_frame_ms: float | None = Field(description="until the first frame, where frames were sent")
    ttft_ms: float | None = Field(description="until the first text, thought or call")
    total_ms: float
    output_tok_s: float = Field(description="committed tokens a second")
    canvas_tok_s: float = Field(description="positions of finished canvases a second")
    step_tok_s: float = Field(description="positions denoised a second, each step counted")


class Costs(BaseModel):
    """What a reply tells of its costs."""

    usage: Usage
    diffusion_usage: DiffusionUsage
    timings: Timings
    seeds: list[int] = Field(description="of each answer, given or drawn")


class TextLogprobs(BaseModel):
    """Log-probabilities at temperature 1, in the old form: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int] = Field(description="characters in front of each token")


class TextChoice(BaseModel):
    """One of n answers."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextReply(Costs):
    """A plain text: what follows a prompt, or stands before a suffix."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
