"""Fill holes in a text: the words around a hole stay as they are and decide what it holds.

Knows texts and holes. Knows nothing about tokens on a canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dgemma.compose.layout import Slot
from dgemma.compose.length import Trial, mean
from dgemma.compose.plan import Plan, check_facts, refuse, total
from dgemma.compose.windows import Windows
from dgemma.compose.write import Written
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import REFUSED_BY_FILL, SamplingParams
from dgemma.text.prompts import WRITE
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Usage

GUESS = 4
"""Tokens of a hole while the lengths of others are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A place in a text where something is to be written.

    Attributes:
        max_tokens: most tokens, 0 for an empty hole; None: what fits on one canvas. Beside them
            stand the tokens at its borders that also hold a part of the text around it.
        min_tokens: fewest tokens.
        allowed_token_ids: the only ids it may hold; None: any text.

    Raises:
        InvalidRequest: values out of range.
    """

    max_tokens: int | None = None
    min_tokens: int = 1
    allowed_token_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_tokens"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= 0) and not (value is None and name == "max_tokens"):
                raise InvalidRequest(f"{name} of a hole must be an integer from 0, got {value!r}")
        if self.max_tokens is not None and 0 < self.max_tokens < self.min_tokens:
            raise InvalidRequest(
                f"a hole's max_tokens {self.max_tokens} is below its min_tokens {self.min_tokens}"
            )
        ids = self.allowed_token_ids
        if ids is None:
            return
        if not len(ids):
            raise InvalidRequest("allowed_token_ids of a hole is empty; name at least one id")
        if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int)]:
            raise InvalidRequest(
                f"allowed_token_ids of a hole holds {bad[0]!r}, which is not an id"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledHole:
    """A hole and its new text.

    Attributes:
        text: without anything of the text around it.
        token_ids: as they stood on the canvas; the first and the last may also hold the bytes of
            the neighbouring text's token.
        confidence: geometric mean of the tokens' probabilities at the step that wrote them.
        slack: blanks that were cut off its end because the text goes on with a blank.
        lengths: the lengths that were looked at, by tokens; empty where there was no choice.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    confidence: float = 1.0
    slack: int = 0
    lengths: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A text whose holes are filled.

    Attributes:
        text: all of it; around the holes it is the caller's own, byte for byte.
        holes: in order.
        seed: 64-bit seed of all its requests.
        outputs: of the canvases that wrote the holes.
        usage: of all requests, those that looked for lengths included.
    """

    text: str
    holes: tuple[FilledHole, ...]
    seed: int
    outputs: tuple[Output, ...]
    usage: Usage


def writing(context: str | None, reference: str, wish: str = WRITE) -> str:
    """The user's message for a text of which a part is on the canvas."""
    parts = [context, wish] if context else [wish]
    if reference:
        parts.append(f"It goes on like this:\n{reference}")
    return "\n\n".join(parts)


def fill(
    facts: ModelFacts, parts: Sequence[str | Hole], params: SamplingParams | None = None, *,
    context: str | None = None, search: bool = True,
) -> Plan[Filled]:  # fmt: skip
    """Fill the holes of a text.

    Args:
        facts: of the model.
        parts: texts and holes in order; texts come back byte for byte.
        params: how to draw. `max_tokens` and `allowed_token_ids` hold for each hole that has none
            of its own, not for the text around it.
        context: comes before the request to write in the user's message.
        search: find how long each hole shall be; else each has exactly its `max_tokens`.

    Raises:
        InvalidRequest: no hole, a hole without `max_tokens` where there is no search, ids that are
            no text, or a parameter that cannot be honoured.
        ContextOverflow: the context leaves no room.
        EngineError: a request failed.
    """
    check_facts(facts)
    params = SamplingParams.of(params)
    refuse(
        params, REFUSED_BY_FILL,
        "the text around a hole is given; bound holes by max_tokens, steer them by "
        "allowed_token_ids or logit_bias (a schema for a whole answer takes given parts as const)",
    )  # fmt: skip
    texts, holes = _parted(parts)
    windows = Windows(
        facts, replace(params, allowed_token_ids=None), lambda rest: writing(context, rest),
        search=search, trim=search,
    )  # fmt: skip
    slots = [
        _slot(hole, n, params, search, facts.tokenizer, windows.width)
        for n, hole in enumerate(holes)
    ]
    kept = [n for n, slot in enumerate(slots) if slot is not None]
    joined: list[str] = [texts[0]]
    for slot, text in zip(slots, texts[1:], strict=True):
        if slot is None:
            joined[-1] += text
        else:
            joined.append(text)
    done = yield from windows.write(joined, [slot for slot in slots if slot is not None])
    found = dict(zip(kept, done, strict=True))
    results = tuple(
        _filled(found.get(n), texts[n + 1], last=n == len(holes) - 1, trim=search)
        for n in range(len(holes))
    )
    yield from windows.end([hole.text for hole in results])
    whole = texts[0] + "".join(h.text + t for h, t in zip(results, texts[1:], strict=True))
    writer = windows.writer
    return Filled(
        text=whole, holes=results, seed=windows.seed, outputs=tuple(writer.outputs),
        usage=total(writer.spent),
    )  # fmt: skip


def infill(
    facts: ModelFacts, prefix: str, suffix: str, params: SamplingParams | None = None, *,
    context: str | None = None, max_hole: int | None = None, search: bool = True,
) -> Plan[Filled]:  # fmt: skip
    """What stands between `prefix` and `suffix`; see `fill`.

    Args:
        max_hole: most tokens of the hole; None: `params.max_tokens`, else what fits on a canvas.
    """
    return fill(
        facts, (prefix, Hole(max_tokens=max_hole), suffix), params, context=context, search=search
    )


def _parted(parts: Sequence[str | Hole]) -> tuple[list[str], list[Hole]]:
    """The texts before, between and after the holes, and the holes."""
    if isinstance(parts, str):
        raise InvalidRequest("parts is a list of texts and holes, not one text")
    texts, holes = [""], list[Hole]()
    for part in parts:
        if isinstance(part, Hole):
            holes.append(part)
            texts.append("")
        elif isinstance(part, str):
            texts[-1] += part
        else:
            raise InvalidRequest(f"parts must be strings and holes, got {type(part).__name__}")
    if not holes:
        raise InvalidRequest("there is nothing to fill; put a Hole() among the parts")
    return texts, holes


def _slot(
    hole: Hole, number: int, params: SamplingParams, search: bool, tokenizer: Tokenizer, width: int
) -> Slot | None:
    """The hole of that number as a slot on canvases of a width, None for an empty one."""
    most = params.max_tokens if hole.max_tokens is None else hole.max_tokens
    if most == 0:
        return None
    if most is not None and most < hole.min_tokens:
        raise InvalidRequest(
            f"max_tokens {most} is below a hole's min_tokens {hole.min_tokens}; raise it"
        )
    if most is None and not search:
        raise InvalidRequest("without a length search a hole needs its max_tokens")
    ids = params.allowed_token_ids if hole.allowed_token_ids is None else hole.allowed_token_ids
    allowed = None
    if ids is not None:
        allowed = tuple(sorted(set(ids)))
        known = range(tokenizer.vocab_size)
        if bad := [i for i in allowed if i not in known or not tokenizer.token_bytes(i)]:
            raise InvalidRequest(f"id {bad[0]} stands for no text; a hole holds text alone")
    long = most is not None or hole.min_tokens > width // 4
    want = max(hole.min_tokens, width // 4) if most is None else most
    most = max(width if most is None else most, hole.min_tokens)
    return Slot(
        least=hole.min_tokens, most=most, want=want, guess=GUESS, long=long, allowed=allowed,
        part=number,
    )  # fmt: skip


def _filled(written: Written | None, after: str, *, last: bool, trim: bool) -> FilledHole:
    """A hole's result; blanks at its end give way to those that the text goes on with."""
    if written is None:
        return FilledHole()
    text = written.text
    if trim and (after[:1].isspace() or (last and not after)):
        text = text.rstrip(" ") or text
    return FilledHole(
        text=text, token_ids=written.token_ids, confidence=math.exp(mean(written.logprobs)),
        slack=len(written.text) - len(text), lengths=written.trials,
    )  # fmt: skip
