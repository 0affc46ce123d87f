"""The encoder's verdict on an answer, or on a part of it, in a reply.

Knows the form of a verdict. Knows nothing about how it comes about.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from dgemma.types import Verdict

LEAST = -9999.0
"""Stands for the logarithm of zero, which JSON cannot hold."""


class VerdictReply(BaseModel):
    """The opinion of the encoder, which reads the answer from left to right."""

    mean: float = Field(description="log-probability of a token, in nats")
    minimum: float = Field(description="of the least likely token")
    score: float = Field(description="minimum, less 0.1 for each step; the greater, the better")
    disagreements: list[int] = Field(description="tokens that are not the encoder's first choice")
    steps: int = Field(description="denoising steps, those of discarded tries left out")
    converged: bool = Field(description="whether every canvas came to rest")
    below: int = Field(description="canvases that stayed unlikely under quality 'careful'")
    logprobs: list[float] | None = Field(default=None, description="of each token, with logprobs")


class DiffusionReply(BaseModel):
    """Fields of an answer that OpenAI does not have."""

    verdict: VerdictReply


def verdict_reply(found: Verdict, *, each: bool = False) -> dict[str, Any]:
    """A verdict in a reply.

    Args:
        each: with the log-probability of each token.
    """
    said: dict[str, Any] = {
        "mean": max(found.mean, LEAST), "minimum": max(found.minimum, LEAST),
        "score": max(found.score, LEAST),
        "disagreements": list(found.disagreements), "steps": found.steps,
        "converged": found.converged, "below": found.below,
    }  # fmt: skip
    if each:
        said["logprobs"] = [max(one, LEAST) for one in found.logprobs]
    return said
