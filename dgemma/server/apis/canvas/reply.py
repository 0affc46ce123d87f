"""The native reply: each segment after the run, and the run itself.

Takes the values of `dgemma.types` and `dgemma.compose` by their own names. Knows nothing about how
they are made.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field

from dgemma.server.accounting import CostedReply
from dgemma.server.choices import LEAST
from dgemma.types import StopReason

Number = Annotated[float, AfterValidator(lambda value: max(value, LEAST))]
"""A logarithm of a probability, which may be zero, or an entropy."""

Bytes = Annotated[list[int], BeforeValidator(list)]


class Alternative(BaseModel):
    """Another token and its probability."""

    token: str
    id: int
    logprob: Number


class PositionScore(Alternative):
    """The token of a position."""

    entropy: Number = Field(description="nats")
    alternatives: list[Alternative]


class LengthTried(BaseModel):
    """A length that a hole was tried at."""

    tokens: int
    reading: Number = Field(description="mean log-probability of its tokens after one step")
    score: Number = Field(description="by which the lengths to denoise were chosen")
    final: Number | None = Field(description="the same after denoising; null: not denoised")
    chosen: bool


class WrittenSegment(BaseModel):
    """A segment after the run."""

    role: Literal["pinned", "seed", "hole"]
    text: str
    tokens: list[int] | None = Field(
        default=None, description="missing for text around holes whose lengths were searched"
    )
    confidence: float | None = Field(default=None, description="of such a hole, 0 to 1")
    length_search: list[LengthTried] | None = None
    logprobs: list[PositionScore] | None = Field(default=None, description="on request")


class Status(BaseModel):
    """How it ended."""

    finish_reason: Literal["stop", "length"]
    converged: bool | None = Field(
        description="whether the canvas came to rest; null: several runs, or a reading alone"
    )


class Step(BaseModel):
    """One denoising step; each list has one entry a position."""

    canvas: int
    attempt: int = Field(validation_alias=AliasChoices("attempt", "try"), serialization_alias="try")
    step: int
    temperature: float
    ids: list[int]
    argmax: list[int]
    accepted: Bytes = Field(description="1 accepted, 2 pinned, 0 noise anew")
    entropy: list[Number] = Field(description="nats")
    reason: StopReason = Field(description="why the canvas ended here")


class CanvasReply(CostedReply):
    """The filled segments."""

    object: Literal["canvas"]
    text: str
    segments: list[WrittenSegment]
    status: Status
    trace: list[Step] | None = Field(default=None, description="on request")
