"""Edit a text in place: spans of it are denoised again, everything else stays byte for byte.

A span begins as it is, noised by a strength; its length may change. Knows texts and spans;
knows nothing about tokens on a canvas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.compose.fill import writing
from dgemma.compose.layout import Slot
from dgemma.compose.length import Trial, mean
from dgemma.compose.plan import Plan, check_facts, refuse, share, total
from dgemma.compose.windows import Windows
from dgemma.compose.write import Written
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import REFUSED_BY_EDIT, SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Usage

STRENGTH = 0.6
INSERTED = 16
"""Most tokens that an empty span may become, unless `max_tokens` says otherwise."""
_BREAKS = (re.compile(r"\n"), re.compile(r"(?<=[.!?]) "), re.compile(r"\s"))
"""Where a long span is cut: after lines, else sentences, else words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A span and its new text.

    Attributes:
        start, end: characters [start, end) of the old text.
        old, new: its text before and after.
        confidence: geometric mean of the new tokens' probabilities.
        lengths: the lengths that were looked at, of the last part where it was cut.
    """

    start: int
    end: int
    old: str
    new: str
    confidence: float
    lengths: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """An edited text.

    Attributes:
        text: all of it; outside the spans it is the caller's own, byte for byte.
        changes: of each span, in the order of the text.
        seed: 64-bit seed of all its requests.
        outputs: of the canvases that wrote the spans.
        usage: of all requests.
    """

    text: str
    changes: tuple[Change, ...]
    seed: int
    outputs: tuple[Output, ...]
    usage: Usage


def edit(
    facts: ModelFacts, text: str, instruction: str | None = None,
    spans: Sequence[tuple[int, int]] | None = None, strength: float = STRENGTH,
    params: SamplingParams | None = None, *, context: str | None = None,
) -> Plan[Edited]:  # fmt: skip
    """Rewrite spans of a text.

    Args:
        facts: of the model.
        text: one longer than a canvas is edited window by window, and later spans see the new
            text of earlier ones.
        instruction: for the user's message, which has the text as well.
        spans: (start, end) in characters, in order, not overlapping; an empty one is a place to
            insert at. None: the whole text, which needs an instruction.
        strength: how much of a span gives way to noise, 0 (none of it changes) to 1 (all).
        params: how to draw. `max_tokens` bounds each span.
        context: begins the user's message.

    Raises:
        InvalidRequest: spans out of range, out of order or overlapping; nothing to do; a strength
            out of range; a parameter that cannot be honoured.
        ContextOverflow: instruction and context leave no room.
        EngineError: a request failed.
    """
    check_facts(facts)
    params = SamplingParams.of(params)
    refuse(
        params, REFUSED_BY_EDIT,
        "the text around a span is given; steer by the instruction instead",
    )  # fmt: skip
    facts.tokenizer.check_text(text)
    _check(text, instruction, spans, strength)
    spans = [(0, len(text))] if spans is None else [(int(a), int(b)) for a, b in spans]
    windows = Windows(
        facts, params, lambda rest: _message(facts, text, instruction, context, rest),
        strength=strength,
    )  # fmt: skip
    if strength:  # a message that does not fit is refused before the work on the spans
        facts.prompt(_message(facts, text, instruction, context, ""), (), windows.width)
    pieces = [_pieces(facts.tokenizer, text, a, b, windows.width // 3) for a, b in spans]
    flat = [piece for one in pieces for piece in one]
    borders = [0, *(at for piece in flat for at in piece), len(text)]
    texts = [text[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True)]
    if strength == 0 or not flat:
        done = [Written(raw=text[a:b].encode()) for a, b in flat]
    else:
        slots = [
            _slot(facts, text[a:b], params, n)
            for n, own in enumerate(pieces) for a, b in own
        ]  # fmt: skip
        done = yield from windows.write(texts, slots)
    whole = texts[0] + "".join(w.text + t for w, t in zip(done, texts[1:], strict=True))
    changes = _changes(text, spans, pieces, done)
    yield from windows.end([change.new for change in changes])
    writer = windows.writer
    return Edited(
        text=whole, changes=changes, seed=windows.seed,
        outputs=tuple(writer.outputs), usage=total(writer.spent),
    )  # fmt: skip


def _check(
    text: str, instruction: str | None, spans: Sequence[tuple[int, int]] | None, strength: float
) -> None:
    share("strength", strength)
    if spans is None:
        if not instruction:
            raise InvalidRequest("give an instruction, or the spans to rewrite")
        if not text:
            raise InvalidRequest("the text is empty; there is nothing to edit")
        return
    if not spans:
        raise InvalidRequest("spans is empty; name at least one, or leave it out for all the text")
    last = 0
    for span in spans:
        pair = isinstance(span, Sequence) and len(span) == 2
        if not pair or any(isinstance(at, bool) or not isinstance(at, int) for at in span):
            raise InvalidRequest(f"a span is (start, end) in characters, got {span!r}")
        start, end = span
        if not 0 <= start <= end <= len(text):
            raise InvalidRequest(
                f"span {start}:{end} is outside the text of {len(text)} characters, or backwards"
            )
        if start < last:
            raise InvalidRequest(
                f"span {start}:{end} begins before {last}, where the one before it ends; give "
                "spans in order and without overlap"
            )
        last = end


def _message(
    facts: ModelFacts, text: str, instruction: str | None, context: str | None, rest: str
) -> str:
    """The user's message; where the whole old text is in it, the rest need not be shown again."""
    if not instruction:
        return writing(context, rest)
    shown = facts.reference(text)
    return writing(context, "" if shown == text else rest, f"{instruction}\n\n{shown}")


def _slot(facts: ModelFacts, old: str, params: SamplingParams, span: int) -> Slot:
    count = len(facts.tokenizer.encode(old))
    limit = params.max_tokens
    if not old:
        most = min(INSERTED, facts.canvas) if limit is None else limit
        return Slot(least=1, most=most, want=most, guess=min(4, most), part=span)
    most = count + max(3, count // 2)
    if limit is not None:
        most = min(most, limit)
    return Slot(least=1, most=most, want=most, guess=min(count, most), old=old, part=span)


def _pieces(
    tokenizer: Tokenizer, text: str, start: int, end: int, most: int
) -> list[tuple[int, int]]:
    """A span cut into parts of at most about `most` tokens, where a reader would cut it."""
    span = text[start:end]
    if not span or (
        tokenizer.least_tokens(span) <= most and len(tokenizer.encode(span)) <= most
    ):  # fmt: skip
        return [(start, end)]
    middle, reach = (start + end) // 2, (end - start) // 4
    cut, low, high = middle, max(start + 1, middle - reach - 1), min(end - 1, middle + reach)
    for pattern in _BREAKS:
        ends = (found.end() for found in pattern.finditer(text, low, high))
        near = min(ends, key=lambda at: abs(at - middle), default=start)
        if abs(near - middle) <= reach:
            cut = near
            break
    if not start < cut < end:
        return [(start, end)]
    return _pieces(tokenizer, text, start, cut, most) + _pieces(tokenizer, text, cut, end, most)


def _changes(
    text: str, spans: Sequence[tuple[int, int]], pieces: Sequence[list[tuple[int, int]]],
    done: Sequence[Written],
) -> tuple[Change, ...]:  # fmt: skip
    """The change of each span, its parts joined again."""
    rest, out = list(done), []
    for (start, end), parts in zip(spans, pieces, strict=True):
        own, rest = rest[: len(parts)], rest[len(parts) :]
        values = [value for written in own for value in written.logprobs]
        out.append(Change(
            start=start, end=end, old=text[start:end], new="".join(w.text for w in own),
            confidence=math.exp(mean(values)), lengths=own[-1].trials,
        ))  # fmt: skip
    return tuple(out)
