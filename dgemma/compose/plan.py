"""A plan: a generator of requests that receives their outputs. It must not know who runs them."""

from __future__ import annotations

import random
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import fields
from typing import TypeVar

from dgemma.errors import EngineError, bad_field
from dgemma.params import SamplingParams, canvas_width, refused
from dgemma.types import Output, Request, Usage

T = TypeVar("T")

Plan = Generator[Sequence[Request], Sequence[Output], T]
"""Each yield: requests that run together; the plan receives their outputs in the same order."""

MOST_TOGETHER = 24
"""Requests of one yield that only look for something (lengths, noise draws)."""


def run(requests: Sequence[Request]) -> Plan[list[Output]]:
    """Run requests together.

    Raises:
        EngineError: one of them failed or was cancelled.
    """
    if not requests:
        return []
    outputs = list((yield requests))
    assert len(outputs) == len(requests)
    for output in outputs:
        if output.finish_reason == "error":
            raise EngineError(output.error or "a request failed without saying why")
        if output.finish_reason == "cancelled":
            raise EngineError("a request of this call was cancelled; call again")
    return outputs


def check_whole(output: Output, count: int) -> None:
    """Refuse a canvas that came back with fewer than `count` tokens or scores.

    Raises:
        EngineError: it did.
    """
    if min(len(output.token_ids), len(output.scores)) < count:
        raise EngineError(
            f"a canvas came back with {len(output.token_ids)} tokens of {count}; ask again "
            "with another seed"
        )


def total(outputs: Collection[Output]) -> Usage:
    """The cost of several requests together."""
    names = [field.name for field in fields(Usage)]
    return Usage(**{name: sum(getattr(one.usage, name) for one in outputs) for name in names})


def full_width(params: SamplingParams, full: int) -> int:
    """Tokens of the canvases of a plan; "auto" narrows none of them before its text is known.

    Raises:
        InvalidRequest: a wider canvas than the checkpoint's, which has `full`.
    """
    if params.canvas_length == "auto":
        return full
    return canvas_width(params, full)


def seed_of(params: SamplingParams) -> int:
    """The seed given, or one that is drawn for all requests of a plan."""
    return random.SystemRandom().getrandbits(63) if params.seed is None else params.seed


def share(name: str, value: object) -> float:
    """A number from 0 to 1.

    Raises:
        InvalidRequest: another value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise refused(name, "be a number from 0 to 1", value)
    return float(value)


def refuse(params: SamplingParams, names: Iterable[str], why: str) -> None:
    """Refuse parameters that a plan cannot honour.

    Raises:
        InvalidRequest: one of `names` is set; `why` names the remedy.
    """
    for name in names:
        if getattr(params, name) is not None:
            raise bad_field(name, f"cannot be used here; {why}")
