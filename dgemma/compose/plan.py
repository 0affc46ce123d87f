"""What a plan is: a generator of requests, and what it must know of a loaded model.

Knows how outputs are checked and their costs added up. Knows nothing about who runs the requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dgemma.errors import ContextOverflow, EngineError, InvalidRequest
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Matcher, Output, Request, Usage

T = TypeVar("T")

Plan = Generator[Sequence[Request], Sequence[Output], T]
"""Each yield: requests that run together; the plan receives their outputs in the same order."""

MOST_TOGETHER = 24
"""Requests of one yield that only look for something (lengths, noise draws)."""
REFERENCE_SHARE = 4
"""At most one part in that many of the context goes to text that is only shown for reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a plan must know of a loaded model.

    Attributes:
        tokenizer: its vocabulary.
        canvas: tokens of its canvas.
        context: most positions of prompt and answer together.
        end_id: ends the model's turn.
        end_ids: all ids that end an answer.
        fill_id: what follows the end on a canvas.
        ask: a user's message to prompt ids that end where the model's turn begins.
        constraint: the walk through the language that parameters ask for, and its name, if they do.
    """

    tokenizer: Tokenizer
    canvas: int
    context: int
    end_id: int
    end_ids: tuple[int, ...]
    fill_id: int
    ask: Callable[[str], list[int]]
    constraint: Callable[[SamplingParams], tuple[Matcher, str] | None]

    def prompt(self, message: str, head: Sequence[int], room: int) -> tuple[int, ...]:
        """The prompt of a message and of the text that the answer has begun with.

        Where the text is too long, its beginning is left out.

        Args:
            message: the user's.
            head: ids of the answer's text so far.
            room: positions that stay free.

        Raises:
            ContextOverflow: the message alone is too long.
        """
        asked = self.ask(message)
        left = self.context - room - len(asked)
        if left < 0:
            raise ContextOverflow(
                f"a message of {len(asked)} tokens leaves no room for a canvas of {room} in the "
                f"model's context of {self.context}; shorten the context or the instruction",
                field="prompt",
            )
        kept = head[max(0, len(head) - left) :]
        return (*asked, *kept)

    def reference(self, text: str, *, last: bool = False) -> str:
        """As much of a text's beginning (or end) as may be shown for reference."""
        most = self.context // REFERENCE_SHARE
        ids = self.tokenizer.encode(text)
        if len(ids) <= most:
            return text
        return self.tokenizer.decode(ids[-most:] if last else ids[:most]).strip("\ufffd")


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


def total(usages: Iterable[Usage]) -> Usage:
    """The sum of what several requests cost."""
    kept = list(usages)
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in kept),
        completion_tokens=sum(u.completion_tokens for u in kept),
        canvases=sum(u.canvases for u in kept),
        steps=sum(u.steps for u in kept),
    )


def seed_of(params: SamplingParams) -> int:
    """The seed given, or one that is drawn for all requests of a plan."""
    return random.SystemRandom().getrandbits(63) if params.seed is None else params.seed


def share(name: str, value: object) -> float:
    """A number from 0 to 1.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidRequest(f"{name} must be a number from 0 to 1, got {value!r}", field=name)
    return float(value)


def checked(params: SamplingParams | None) -> SamplingParams:
    """The parameters, the defaults for None.

    Raises:
        InvalidRequest: something else.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, got {type(params).__name__}")
    return params


def refuse(params: SamplingParams, names: Iterable[str], why: str) -> None:
    """Refuse parameters that a plan cannot honour.

    Raises:
        InvalidRequest: one of `names` is set; `why` says what to do.
    """
    for name in names:
        if getattr(params, name) is not None:
            raise InvalidRequest(f"{name} cannot be used here; {why}", field=name)
