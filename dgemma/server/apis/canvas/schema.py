"""The native request: a canvas said in segments, and the same as a control or as holes to fill.

Knows segments, and how they stand on a canvas. Knows nothing about HTTP or how a canvas is run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from dgemma.compose.fill import Hole
from dgemma.errors import InvalidRequest
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams, canvas_width
from dgemma.server.request_body import Body
from dgemma.server.sampling_fields import SamplingFields
from dgemma.text.token_table import token_table_of
from dgemma.types import CanvasControl

MOST_SEGMENTS = 256
STRENGTH = 0.6


class Segment(Body):
    """A part of the canvas.

    Attributes:
        text, tokens: what stands there, one of the two; neither for a hole.
        role: "pinned": it stays; "seed": it is denoised from there on; "hole": to be written.
            None: a hole where nothing is given, else pinned.
        min_length, max_length: tokens of a hole; where they differ, lengths are looked for.
        allowed_token_ids: the only ids a hole (or a seed) may hold.
        choices: the only texts a hole of one token may hold; each must be one token.
        noise: how much of a seed gives way to noise, at least the request's `strength`.
    """

    text: str | None = None
    tokens: list[int] | None = None
    role: Literal["pinned", "seed", "hole"] | None = None
    min_length: int | None = Field(default=None, ge=0)
    max_length: int | None = Field(default=None, ge=1)
    allowed_token_ids: list[int] | None = Field(default=None, min_length=1)
    choices: list[str] | None = Field(default=None, min_length=1)
    noise: float | None = Field(default=None, ge=0, le=1)


class Returned(Body):
    """What the reply holds beside the text: every step, log-probabilities, so many alternatives."""

    trace: bool = False
    logprobs: bool = False
    alternatives: int = Field(default=0, ge=0, le=64)


class CanvasRequest(SamplingFields):
    """A canvas in segments.

    Attributes:
        segments: in order; together they are the whole answer.
        messages, prompt: what the canvas follows, one of the two or neither. Messages and token
            ids are the whole prompt; a text stands in the user's message before the request to
            write.
        strength: how much of the seeds gives way to noise, and the part of the schedule that is
            run, 0 to 1.
        read_only: make `max_steps` steps (1 where it is not set) and report what the canvas then
            is.
        returns: see `Returned`; "return" in the request.
    """

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **SamplingFields.NAMES, "strength": ("strength",), "ids": ("segments",),
        "pinned": ("segments",),
        "prompt": ("messages", "prompt", "segments"),
    }  # fmt: skip

    model: str | None = None
    segments: list[Segment] = Field(min_length=1, max_length=MOST_SEGMENTS)
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    strength: float | None = Field(default=None, ge=0, le=1)
    read_only: bool = False
    returns: Returned = Field(default=Returned(), alias="return")


@dataclass(frozen=True, slots=True)
class PlacedSegments:
    """A canvas of segments: what is fixed on it, and each segment's positions."""

    control: CanvasControl
    positions: tuple[range, ...]

    @property
    def width(self) -> int:
        """Positions of the canvas."""
        return len(self.control.ids)

    @property
    def content(self) -> int:
        """Positions before the end."""
        return self.positions[-1].stop


def role_of(segment: Segment) -> str:
    """What a segment is, where it does not say so."""
    given = segment.text is not None or segment.tokens is not None
    return segment.role or ("pinned" if given else "hole")


def check(segments: Sequence[Segment], strength: float | None) -> None:
    """Refuse fields that mean nothing where they stand.

    Raises:
        InvalidRequest: the message names the segment and the field.
    """
    for number, one in enumerate(segments):
        where, role = f"segments[{number}]", role_of(one)
        if one.text is not None and one.tokens is not None:
            raise InvalidRequest(f"{where} has text and tokens; give one of them", field=where)
        given = one.text is not None or one.tokens is not None
        if given == (role == "hole"):
            need = "holds nothing yet; leave out text and tokens" if given else "needs text, tokens"
            raise InvalidRequest(f"{where}: a {role} segment {need}", field=where)
        barred = {
            "pinned": ("min_length", "max_length", "allowed_token_ids", "choices", "noise"),
            "seed": ("min_length", "max_length", "choices"),
            "hole": ("noise",),
        }[role]
        for name in barred:
            if getattr(one, name) is not None:
                raise InvalidRequest(
                    f"{where}.{name} has no meaning for a {role} segment", field=f"{where}.{name}"
                )
        if one.choices is not None and one.allowed_token_ids is not None:
            raise InvalidRequest(
                f"{where}: choices and allowed_token_ids; give one of them", field=where
            )
        if one.max_length is not None and (one.min_length or 0) > one.max_length:
            raise InvalidRequest(f"{where}: min_length is above max_length", field=where)
        if one.noise is not None and strength is not None and one.noise < strength:
            raise InvalidRequest(
                f"{where}.noise {one.noise} is below strength {strength}", field=f"{where}.noise"
            )
    roles = {role_of(one) for one in segments}
    if strength is not None and "seed" not in roles:
        raise InvalidRequest("strength has no meaning without a seed segment", field="strength")
    if roles == {"pinned"}:
        raise InvalidRequest(
            "segments has nothing to write; add a hole or a seed", field="segments"
        )


def is_text(segments: Sequence[Segment]) -> bool:
    """Whether it is text with holes, which `dgemma.compose.fill` can write at any length."""
    return all(
        role_of(one) == "hole" or (role_of(one) == "pinned" and one.tokens is None)
        for one in segments
    )


def parts(facts: ModelFacts, segments: Sequence[Segment]) -> list[str | Hole]:
    """Text and holes as `dgemma.compose.fill` takes them."""
    out: list[str | Hole] = []
    for number, one in enumerate(segments):
        if role_of(one) != "hole":
            assert one.text is not None
            out.append(one.text)
            continue
        least = 1 if one.min_length is None else one.min_length
        most = 1 if one.choices is not None else one.max_length
        allowed = _allowed(facts, one, f"segments[{number}]")
        out.append(Hole(max_tokens=most, min_tokens=least, allowed_token_ids=allowed))
    return out


def place(
    facts: ModelFacts, segments: Sequence[Segment], *, strength: float | None, seed: int,
    read_only: bool, canvas_length: int | Literal["auto"] | None,
) -> PlacedSegments:  # fmt: skip
    """The canvas on which the segments stand, each as long as it says; the end follows.

    Args:
        canvas_length: None: as wide as need be.

    Raises:
        InvalidRequest: a hole without one length, or more than a canvas holds.
    """
    text = token_table_of(facts.tokenizer).text_ids
    ids: list[int] = []
    masks: list[int] = []
    lists: dict[tuple[int, ...], int] = {}
    pinned: list[int] = []
    positions: list[range] = []
    start = _strength(segments, strength)
    for number, one in enumerate(segments):
        where, role = f"segments[{number}]", role_of(one)
        own = _ids(facts, one, where)
        begin = len(ids)
        if role == "pinned":
            pinned += range(begin, begin + len(own))
            masks += [-1] * len(own)
        else:
            allowed = _allowed(facts, one, where)
            if allowed is None:
                allowed = text if one.tokens is None else tuple(sorted({*text, *one.tokens}))
            mask = lists.setdefault(allowed, len(lists))
            own = [i if i in allowed else -1 for i in own] if one.allowed_token_ids else own
            own = _noised(own, one.noise, start, random.Random(f"{seed} {number}"))
            masks += [mask] * len(own)
        ids += own
        positions.append(range(begin, len(ids)))
    content = len(ids)
    if not content:
        raise InvalidRequest(
            "segments hold no token; give some text, or a hole with a length", field="segments"
        )
    width = SamplingParams(max_tokens=content, canvas_length=canvas_length or "auto")
    room = canvas_width(width, facts.canvas)
    if content > room:
        raise InvalidRequest(
            f"segments take {content} tokens of a canvas of {room}; with tokens, seeds or holes "
            "of one length all of it must fit; give less, or leave the holes' lengths open",
            field="segments",
        )
    if content < room:
        ids.append(facts.end_id)
        ids += [facts.fill_id] * (room - len(ids))
        pinned += range(content, room)
    control = CanvasControl(
        ids=tuple(ids), pinned=tuple(pinned), strength=start, allowed=tuple(lists),
        masks=tuple(masks), read_only=read_only,
    )  # fmt: skip
    return PlacedSegments(control, tuple(positions))


def _ids(facts: ModelFacts, one: Segment, where: str) -> list[int]:
    """What a segment begins with; -1 for noise."""
    if one.tokens is not None:
        _inside(facts, one.tokens, f"{where}.tokens")
        return list(one.tokens)
    if one.text is not None:
        return facts.tokenizer.encode(one.text)
    if one.choices is not None:
        return [-1]
    if one.max_length is None or one.min_length != one.max_length:
        raise InvalidRequest(
            f"{where}: beside tokens or seeds, or where log-probabilities, a trace or a reading "
            "are asked for, a hole has one length; set min_length and max_length to the same",
            field=where,
        )
    return [-1] * one.max_length


def _inside(facts: ModelFacts, ids: Sequence[int], where: str) -> None:
    size = facts.tokenizer.vocab_size
    for token in ids:
        if not 0 <= token < size:
            raise InvalidRequest(
                f"{where}: {token} is outside the vocabulary of {size}", field=where
            )


def _allowed(facts: ModelFacts, one: Segment, where: str) -> tuple[int, ...] | None:
    """The only ids of a hole or seed, sorted; None: any text."""
    if one.allowed_token_ids is not None:
        _inside(facts, one.allowed_token_ids, f"{where}.allowed_token_ids")
        return tuple(sorted(set(one.allowed_token_ids)))
    if one.choices is None:
        return None
    if (one.max_length or 1) != 1 or (one.min_length or 1) != 1:
        raise InvalidRequest(
            f"{where}: choices fill a hole of one token; leave out the lengths", field=where
        )
    found = [facts.tokenizer.encode(choice) for choice in one.choices]
    for choice, ids in zip(one.choices, found, strict=True):
        if len(ids) != 1:
            raise InvalidRequest(
                f"{where}.choices: {choice!r} is {len(ids)} tokens; here a choice must be one "
                "(for longer ones use /v1/decisions, or `choices` of a chat)",
                field=f"{where}.choices",
            )
    return tuple(sorted({ids[0] for ids in found}))


def _strength(segments: Sequence[Segment], strength: float | None) -> float:
    """Where the schedule begins: as asked, else by the seed that keeps the most."""
    if strength is not None:
        return strength
    if not any(role_of(one) == "seed" for one in segments):
        return 1.0
    given = [one.noise for one in segments if role_of(one) == "seed"]
    return min(STRENGTH if noise is None else noise for noise in given)


def _noised(
    ids: Sequence[int], noise: float | None, strength: float, draw: random.Random
) -> list[int]:
    """Give up so many ids that with those which the canvas gives up it is `noise` of them."""
    if noise is None or noise <= strength:
        return list(ids)
    share = 1 - (1 - noise) / (1 - strength)
    return [-1 if draw.random() < share else token for token in ids]
