"""The cost of answers: tokens, canvases and time, for replies and metrics.

Knows the last piece of an answer. Knows nothing about HTTP or an API's other fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from dgemma.server.metrics import Metrics
from dgemma.server.pieces import End


class CompletionDetails(BaseModel):
    """Tokens of the completion by kind."""

    reasoning_tokens: int


class TokenUsage(BaseModel):
    """Tokens in OpenAI's words."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class DiffusionUsage(BaseModel):
    """The answer's cost on the canvas."""

    canvases: int
    steps: int = Field(description="denoising steps of all canvases, or autoregressive passes")
    discarded_steps: int = Field(description="those of them whose canvas was begun anew")
    canvas_tokens: int = Field(description="positions of all canvases, committed or cut off")
    tokens_per_step: float = Field(description="committed tokens per denoising step")


class Timings(BaseModel):
    """Times in milliseconds, and the three rates that are all called tokens per second."""

    ttf_frame_ms: float | None = Field(description="until the first frame; null: none was sent")
    ttft_ms: float | None = Field(description="until the first text, thought or call")
    total_ms: float
    output_tok_s: float = Field(description="committed tokens a second")
    canvas_tok_s: float = Field(description="positions of finished canvases a second")
    step_tok_s: float = Field(description="positions denoised a second, each step counted")


class CostedReply(BaseModel):
    """A reply with its costs; a subclass adds the answers."""

    id: str
    created: int
    model: str
    usage: TokenUsage
    diffusion_usage: DiffusionUsage
    timings: Timings
    seeds: list[int] = Field(description="of each answer, given or drawn")
    restart_after: list[int] = Field(description="of each answer, the number used; 0: never")


def count(metrics: Metrics, ends: Sequence[End], share: int | None = None) -> None:
    """Add answers to the metrics; `share` of them have one prompt, None: all."""
    spent = usage(ends, share)
    metrics.prompt_tokens.inc(spent["prompt_tokens"])
    metrics.completion_tokens.inc(spent["completion_tokens"])
    metrics.discarded_steps.inc(sum(end.output.usage.discarded_steps for end in ends))
    for end in ends:
        if end.times.text_s is not None:
            metrics.first_text.observe(end.times.text_s)


def usage(ends: Sequence[End], share: int | None = None) -> dict[str, Any]:
    """Tokens of all answers; `share` of them have one prompt, None: all."""
    prompt = sum(end.output.usage.prompt_tokens for end in ends[:: share or len(ends)])
    completion = sum(end.output.usage.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {
            "reasoning_tokens": sum(end.output.usage.thought_tokens for end in ends)
        },
    }


def costs(ends: Sequence[End], share: int | None = None) -> dict[str, Any]:
    """The costs in a reply."""
    return {"usage": usage(ends, share)} | costs_beside(ends)


def costs_beside(ends: Sequence[End]) -> dict[str, Any]:
    """The same without OpenAI's `usage`, which a stream sends only on request."""
    spent = [end.output.usage for end in ends]
    completion, steps = sum(u.completion_tokens for u in spent), sum(u.steps for u in spent)
    canvas_tokens = sum(end.output.usage.canvases * end.width for end in ends)
    denoised = sum(end.output.usage.steps * end.width for end in ends)
    total_s = max(end.times.total_s for end in ends)

    def rate(tokens: int) -> float:
        return round(tokens / total_s, 3) if total_s > 0 else 0.0

    def first_ms(times: Sequence[float | None]) -> float | None:
        return min((round(1000 * time, 3) for time in times if time is not None), default=None)

    return {
        "diffusion_usage": {
            "canvases": sum(u.canvases for u in spent),
            "steps": steps,
            "discarded_steps": sum(u.discarded_steps for u in spent),
            "canvas_tokens": canvas_tokens,
            "tokens_per_step": completion / steps if steps else 0.0,
        },
        "timings": {
            "ttf_frame_ms": first_ms([end.times.frame_s for end in ends]),
            "ttft_ms": first_ms([end.times.text_s for end in ends]),
            "total_ms": round(1000 * total_s, 3),
            "output_tok_s": rate(completion),
            "canvas_tok_s": rate(canvas_tokens),
            "step_tok_s": rate(denoised),
        },
        "seeds": [end.output.seed for end in ends],
        "restart_after": [end.output.restart_after for end in ends],
    }
