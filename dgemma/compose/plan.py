"""A plan: a generator of rounds of requests that receives their outputs, and tells which text is
final on the way. It must not know who runs it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, fields
from types import GeneratorType
from typing import TypeVar

from dgemma.errors import EngineError, InvalidRequest, bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import DRAWN_BITS, SamplingParams, canvas_width, refused
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Request, Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a part of the caller's text stands on a canvas.

    Attributes:
        part: number of the hole, span or segment, from 0.
        start, stop: positions [start, stop) of the canvas.
        left, right: bytes of the tokens there that belong to the text before and after the part.
    """

    part: int = 0
    start: int
    stop: int
    left: int = 0
    right: int = 0

    def text(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """The part's text on a canvas of these ids; bytes that are not UTF-8 become U+FFFD."""
        raw = b"".join(map(tokenizer.token_bytes, ids[self.start : self.stop]))
        return raw[self.left : max(self.left, len(raw) - self.right)].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Requests that run together.

    Attributes:
        requests: at least one.
        places: where each of them writes; empty if they only look for something.
        choice: they write the same parts in several ways, the likeliest first. The next `Settled`
            says which one is taken; without one, none is.
    """

    requests: Sequence[Request]
    places: Sequence[Sequence[Place]] = ()
    choice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Text of a part that can no longer change; it follows the part's text so far.

    Attributes:
        taken: number of the request of the last round that wrote it; None: it is not said again.
    """

    part: int
    text: str
    taken: int | None = None


Plan = Generator[Round | Settled, Sequence[Output], T]
"""A round is answered by the outputs of its requests in the same order, a settled text by ()."""

MOST_TOGETHER = 24
"""Requests of one yield that only look for something (lengths, noise draws)."""


def run(
    requests: Sequence[Request], places: Sequence[Sequence[Place]] = (), *, choice: bool = False
) -> Plan[list[Output]]:
    """Run requests together; see `Round`.

    Raises:
        EngineError: one of them failed or was cancelled.
    """
    if not requests:
        return []
    outputs = list((yield Round(requests=requests, places=places, choice=choice)))
    assert len(outputs) == len(requests)
    for output in outputs:
        if output.finish_reason == "error":
            raise EngineError(output.error or "a request failed without saying why")
        if output.finish_reason == "cancelled":
            raise EngineError("a request of this call was cancelled; call again")
    return outputs


def check_facts(facts: object) -> None:
    """Refuse a model in place of its facts.

    Raises:
        InvalidRequest: these are no facts.
    """
    if not isinstance(facts, ModelFacts):
        model = isinstance(getattr(facts, "facts", None), ModelFacts)
        given = "the model" if model else f"a value of type {type(facts).__name__}"
        raise bad_field("facts", f"are those of the model: give llm.facts, not {given}")


def check_fresh(plan: object, call: str) -> None:
    """Refuse what is no plan, and one that has begun.

    Args:
        call: what was called.

    Raises:
        InvalidRequest: it cannot be run.
    """
    if not isinstance(plan, GeneratorType):
        given = type(plan).__name__
        raise InvalidRequest(
            f"{call} takes a plan, such as infill(llm.facts, ...), not a value of type {given}"
        )
    if inspect.getgeneratorstate(plan) != inspect.GEN_CREATED:
        raise InvalidRequest("this plan has run; make a new one")


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
    return random.SystemRandom().getrandbits(DRAWN_BITS) if params.seed is None else params.seed


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
