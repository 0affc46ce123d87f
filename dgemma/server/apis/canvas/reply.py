"""The native reply: what became of each segment, and how.

For the OpenAPI document and for clients in typed languages. Knows nothing about how it is made.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from dgemma.server.reply_schema import Costs


class Alternative(BaseModel):
    """A token that might have stood there."""

    token: str
    id: int
    logprob: float


class PositionScore(Alternative):
    """What a position holds."""

    entropy: float = Field(description="nats")
    alternatives: list[Alternative]


class LengthTried(BaseModel):
    """A length that a hole was tried at."""

    tokens: int
    reading: float = Field(description="mean log-probability of what stands around, one reading")
    score: float = Field(description="by which the lengths to be denoised were chosen")
    final: float | None = Field(description="the same after denoising; null: not denoised")
    chosen: bool


class WrittenSegment(BaseModel):
    """A segment after the run."""

    role: Literal["pinned", "seed", "hole"]
    text: str
    tokens: list[int] | None = Field(
        default=None, description="missing for text around holes whose lengths were looked for"
    )
    confidence: float | None = Field(default=None, description="of such a hole, 0 to 1")
    length_search: list[LengthTried] | None = None
    logprobs: list[PositionScore] | None = Field(default=None, description="where asked for")


class Status(BaseModel):
    """How it ended."""

    finish_reason: Literal["stop", "length"]
    converged: bool | None = Field(
        description="whether the canvas came to rest; null: several runs, or a reading alone"
    )


class Step(BaseModel):
    """One denoising step; each list has one entry a position."""

    canvas: int
    step: int
    temperature: float
    ids: list[int]
    argmax: list[int]
    accepted: list[int] = Field(description="1 accepted, 2 pinned, 0 noise anew")
    entropy: list[float] = Field(description="nats")
    reason: Literal["", "converged", "step_cap"] = Field(description="why the canvas ended here")


class CanvasReply(Costs):
    """The filled segments."""

    id: str
    object: Literal["canvas"]
    created: int
    model: str
    text: str
    segments: list[WrittenSegment]
    status: Status
    trace: list[Step] | None = Field(default=None, description="where asked for")
