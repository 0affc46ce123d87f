"""The neutral pieces of a reply in the words of OpenAI's chat API: messages, chunks, logprobs.

Pure functions of plain values. Knows nothing about HTTP or how pieces come about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from dgemma.server.pieces import Call, Committed, End, Folded, Frame, StatusPiece
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ENTROPY_PER_NAT, TokenScore

LEAST = -9999.0
"""Stands for a probability of zero, whose logarithm JSON cannot hold."""

STATES = ("renoised", "accepted", "pinned")
"""What `Event.accepted` says of a position."""


def tool_call(call: Call) -> dict[str, Any]:
    """A call in a message."""
    arguments = json.dumps(dict(call.call.arguments), ensure_ascii=False)
    function = {"name": call.call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def content(folded: Folded) -> str | None:
    """The answer's text; None where it is calls alone."""
    return folded.text or (None if folded.calls else "")


def message(folded: Folded) -> dict[str, Any]:
    """The whole answer."""
    found: dict[str, Any] = {
        "role": "assistant",
        "content": content(folded),
        "refusal": None,
    }
    if folded.thinking:
        found["reasoning_content"] = folded.thinking
    if folded.calls:
        found["tool_calls"] = [tool_call(call) for call in folded.calls]
    return found


def finish_reason(end: End, calls: int) -> str:
    """The engine's reason in OpenAI's words."""
    if end.output.finish_reason == "length":
        return "length"
    return "tool_calls" if calls else "stop"


def logprobs(
    scores: Sequence[TokenScore], asked: Sequence[int], tokenizer: Tokenizer, *, as_ids: bool
) -> dict[str, Any]:
    """Log-probabilities of tokens.

    Args:
        asked: `logprob_token_ids`, which stand behind the likeliest of each position.
        as_ids: tokens are named by their ids.
    """

    def one(token_id: int, value: float) -> dict[str, Any]:
        return {
            "token": f"token_id:{token_id}" if as_ids else tokenizer.token_text(token_id),
            "logprob": value if math.isfinite(value) else LEAST,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = []
    for score in scores:
        seen = {token_id for token_id, _ in score.top}
        more = [(i, v) for i, v in zip(asked, score.asked, strict=False) if i not in seen]
        others = [one(token_id, value) for token_id, value in (*score.top, *more)]
        content.append(one(score.token_id, score.logprob) | {"top_logprobs": others})
    return {"content": content, "refusal": None}


def usage(ends: Sequence[End]) -> dict[str, Any]:
    """Tokens of all choices, which share one prompt."""
    prompt = ends[0].output.usage.prompt_tokens
    completion = sum(end.output.usage.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": sum(end.thought_tokens for end in ends)},
    }


def diffusion_usage(ends: Sequence[End]) -> dict[str, Any]:
    """What all choices cost on the canvas."""
    steps = sum(end.output.usage.steps for end in ends)
    completion = sum(end.output.usage.completion_tokens for end in ends)
    return {
        "canvases": sum(end.output.usage.canvases for end in ends),
        "steps": steps,
        "canvas_tokens": sum(end.output.usage.canvases * end.width for end in ends),
        "tokens_per_step": completion / steps if steps else 0.0,
    }


def costs(ends: Sequence[End]) -> dict[str, Any]:
    """What a reply tells of its costs."""
    return {"usage": usage(ends)} | costs_beside(ends)


def costs_beside(ends: Sequence[End]) -> dict[str, Any]:
    """The same without OpenAI's `usage`, which in a stream comes only where it is asked for."""
    return {
        "diffusion_usage": diffusion_usage(ends), "timings": timings(ends),
        "seeds": [end.output.seed for end in ends],
    }  # fmt: skip


def timings(ends: Sequence[End]) -> dict[str, Any]:
    """Times and rates of all choices, which run together."""
    spent = usage(ends), diffusion_usage(ends)
    total_s = max(end.times.total_s for end in ends)
    frames = [end.times.frame_s for end in ends if end.times.frame_s is not None]
    texts = [end.times.text_s for end in ends if end.times.text_s is not None]
    denoised = sum(end.output.usage.steps * end.width for end in ends)

    def rate(count: int) -> float:
        return round(count / total_s, 3) if total_s > 0 else 0.0

    return {
        "ttf_frame_ms": round(1000 * min(frames), 3) if frames else None,
        "ttft_ms": round(1000 * min(texts), 3) if texts else None,
        "total_ms": round(1000 * total_s, 3),
        "output_tok_s": rate(spent[0]["completion_tokens"]),
        "canvas_tok_s": rate(spent[1]["canvas_tokens"]),
        "step_tok_s": rate(denoised),
    }


def note(piece: StatusPiece | Committed) -> dict[str, Any]:
    """What happened beside the drafts, as a side field of a chunk."""
    event = piece.event
    if isinstance(piece, StatusPiece):
        told: dict[str, Any] = {"type": "status", "state": event.state}
        if event.state == "encoding":
            told |= {"encoded": event.step, "prompt_tokens": piece.prompt_tokens}
        return {"diffusion": told}
    return {"diffusion": {
        "type": "commit", "canvas": event.canvas, "tokens": len(event.ids), "steps": event.step,
        "whole": event.whole, "stop_reason": event.reason or None,
    }}  # fmt: skip


def frame(piece: Frame, most_steps: int, tokenizer: Tokenizer, *, tokens: bool) -> dict[str, Any]:
    """A draft as side fields of a chunk: ours, and those of Unsloth Studio beside them."""
    event = piece.event
    told: dict[str, Any] = {
        "type": "frame", "canvas": event.canvas, "step": event.step, "max_steps": most_steps,
        "mean_entropy": round(piece.mean_entropy, 5),
        "accepted": event.accepted.count(1), "renoised": event.accepted.count(0),
        "pinned": event.accepted.count(2), "text": piece.text,
    }  # fmt: skip
    if piece.thinking:
        told["thinking"] = piece.thinking
    if tokens:
        told["tokens"] = [
            {
                "position": position, "id": token_id, "text": tokenizer.token_text(token_id),
                "state": STATES[state], "entropy": entropy / ENTROPY_PER_NAT,
            }
            for position, (token_id, state, entropy) in enumerate(
                zip(event.ids, event.accepted, event.entropy, strict=True)
            )
        ]  # fmt: skip
    return {
        "diffusion": told, "type": "diffusion_frame", "block": event.canvas, "step": event.step,
        "total": most_steps, "text": piece.text,
    }  # fmt: skip
