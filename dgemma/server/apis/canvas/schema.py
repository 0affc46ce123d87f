"""The native request: a canvas in segments, and the same as a control or as holes to fill.

Knows segments and their positions on a canvas. Knows nothing about HTTP or how a canvas is run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgemma.compose.edit import STRENGTH
from dgemma.compose.fill import Hole
from dgemma.errors import bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams, canvas_width
from dgemma.server.request_body import MOST_MESSAGES, Body, at_most
from dgemma.server.sampling_fields import (
    MOST_TOKENS,
    Ids,
    SamplingFields,
    Share,
    StreamFields,
)
from dgemma.text.token_table import token_table_of
from dgemma.types import CanvasControl

MOST_SEGMENTS, MOST_CHOICES = 256, 1024
"""Parts of a canvas; texts that one hole may hold."""


class Segment(Body):
    """A part of the canvas.

    Attributes:
        text, tokens: the content, one of the two; neither for a hole.
        role: "pinned": it stays; "seed": it is denoised from there on; "hole": to be written.
            None: a hole if there is no content, else pinned.
        min_length, max_length: tokens of a hole; if they differ, its length is searched.
        allowed_token_ids: the only ids a hole (or a seed) may hold.
        choices: the only texts a hole of one token may hold; each must be one token.
        noise: how much of a seed gives way to noise, at least the request's `strength`.
    """

    text: str | None = None
    tokens: Ids | None = None
    role: Literal["pinned", "seed", "hole"] | None = None
    min_length: int | None = Field(default=None, ge=0, le=MOST_TOKENS)
    max_length: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    allowed_token_ids: Ids | None = Field(default=None, min_length=1)
    choices: list[str] | None = Field(default=None, min_length=1, max_length=MOST_CHOICES)
    noise: Share | None = None


class Returned(Body):
    """The fields of the reply beside the text: every step, log-probabilities, alternatives."""

    trace: bool = False
    logprobs: bool = False
    alternatives: int = Field(default=0, ge=0, le=64)


class CanvasRequest(StreamFields):
    """A canvas in segments.

    Attributes:
        segments: in order; together they are the whole answer.
        messages, prompt: the prompt, one of the two or neither. Messages and token ids are the
            whole prompt; a text is put into the user's message before the request to write.
        strength: how much of the seeds gives way to noise, and the part of the schedule that is
            run, 0 to 1.
        read_only: make `max_steps` steps (1 if it is not set) and report the canvas then.
        returns: see `Returned`; "return" in the request.
    """

    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **SamplingFields.NAMES, "strength": ("strength",), "ids": ("segments",),
        "pinned": ("segments",),
        "prompt": ("messages", "prompt", "segments"),
    }  # fmt: skip

    model: str | None = None
    segments: list[Segment] = Field(min_length=1, max_length=MOST_SEGMENTS)
    messages: Annotated[
        list[dict[str, Any]] | None, Field(fail_fast=True), at_most(MOST_MESSAGES, "messages")
    ] = None
    prompt: str | Ids | None = None
    strength: Share | None = None
    read_only: bool = False
    returns: Returned = Field(default=Returned(), alias="return")


@dataclass(frozen=True, slots=True)
class PlacedSegments:
    """A canvas of segments: its control, and each segment's positions."""

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
    """The role of a segment, given or not."""
    given = segment.text is not None or segment.tokens is not None
    return segment.role or ("pinned" if given else "hole")


def check(segments: Sequence[Segment], strength: float | None) -> None:
    """Refuse fields that have no meaning for their segment.

    Raises:
        InvalidRequest: the message names the segment and the field.
    """
    for number, one in enumerate(segments):
        where, role = f"segments[{number}]", role_of(one)
        if one.text is not None and one.tokens is not None:
            raise bad_field(where, "has text and tokens; give one of them")
        given = one.text is not None or one.tokens is not None
        if given == (role == "hole"):
            remedy = "leave out text and tokens" if given else "give text or tokens"
            raise bad_field(where, f"is a {role} segment; {remedy}")
        barred = {
            "pinned": ("min_length", "max_length", "allowed_token_ids", "choices", "noise"),
            "seed": ("min_length", "max_length", "choices"),
            "hole": ("noise",),
        }[role]
        for name in barred:
            if getattr(one, name) is not None:
                raise bad_field(f"{where}.{name}", f"has no meaning for a {role} segment")
        if one.choices is not None and one.allowed_token_ids is not None:
            raise bad_field(where, "has choices and allowed_token_ids; give one of them")
        if one.max_length is not None and (one.min_length or 0) > one.max_length:
            raise bad_field(where, "has a min_length above its max_length")
        if one.noise is not None and strength is not None and one.noise < strength:
            raise bad_field(f"{where}.noise", f"{one.noise} is below strength {strength}")
    roles = {role_of(one) for one in segments}
    if strength is not None and "seed" not in roles:
        raise bad_field("strength", "has no meaning without a seed segment")
    if roles == {"pinned"}:
        raise bad_field("segments", "has nothing to write; add a hole or a seed")


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
    facts: ModelFacts, body: CanvasRequest, params: SamplingParams, seed: int
) -> PlacedSegments:
    """The canvas of the segments, each with its fixed length; the end follows.

    Raises:
        InvalidRequest: a hole without one length, or more than a canvas holds.
    """
    text = token_table_of(facts.tokenizer).text_ids
    ids: list[int] = []
    masks: list[int] = []
    lists: dict[tuple[int, ...], int] = {}
    pinned: list[int] = []
    positions: list[range] = []
    start = _strength(body)
    for number, one in enumerate(body.segments):
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
        raise bad_field("segments", "holds no token; give some text, or a hole with a length")
    width = SamplingParams(max_tokens=content, canvas_length=params.canvas_length or "auto")
    room = canvas_width(width, facts.canvas)
    if content > room:
        raise bad_field(
            "segments", f"takes {content} tokens of a canvas of {room}; with tokens, seeds or "
            "holes of one length all must fit; give less, or leave the holes' lengths open",
        )  # fmt: skip
    if content < room:
        ids.append(facts.end_id)
        ids += [facts.fill_id] * (room - len(ids))
        pinned += range(content, room)
    control = CanvasControl(
        ids=tuple(ids), pinned=tuple(pinned), strength=start, allowed=tuple(lists),
        masks=tuple(masks), read_only=body.read_only,
    )  # fmt: skip
    return PlacedSegments(control, tuple(positions))


def _ids(facts: ModelFacts, one: Segment, where: str) -> list[int]:
    """The ids that a segment begins with; -1 for noise."""
    if one.tokens is not None:
        _inside(facts, one.tokens, f"{where}.tokens")
        return list(one.tokens)
    if one.text is not None:
        facts.tokenizer.check_length((one.text,), facts.context, field=f"{where}.text")
        return facts.tokenizer.encode(one.text)
    if one.choices is not None:
        return [-1]
    if one.max_length is None or one.min_length != one.max_length:
        raise bad_field(
            where, "needs one length, beside tokens or seeds, or with log-probabilities, a trace "
            "or read_only; set min_length and max_length to the same",
        )  # fmt: skip
    return [-1] * one.max_length


def _inside(facts: ModelFacts, ids: Sequence[int], where: str) -> None:
    size = facts.tokenizer.vocab_size
    for token in ids:
        if not 0 <= token < size:
            raise bad_field(where, f"has {token}, which is outside the vocabulary of {size}")


def _allowed(facts: ModelFacts, one: Segment, where: str) -> tuple[int, ...] | None:
    """The only ids of a hole or seed, sorted; None: any text."""
    if one.allowed_token_ids is not None:
        _inside(facts, one.allowed_token_ids, f"{where}.allowed_token_ids")
        return tuple(sorted(set(one.allowed_token_ids)))
    if one.choices is None:
        return None
    if (one.max_length or 1) != 1 or (one.min_length or 1) != 1:
        raise bad_field(where, "has choices, so it is one token long; leave out the lengths")
    found = [facts.tokenizer.encode(choice) for choice in one.choices]
    for choice, ids in zip(one.choices, found, strict=True):
        if len(ids) != 1:
            raise bad_field(
                f"{where}.choices", f"holds {choice!r}, which is {len(ids)} tokens; give one, "
                "or use /v1/decisions, or `guided_choice` of a chat",
            )  # fmt: skip
    return tuple(sorted({ids[0] for ids in found}))


def _strength(body: CanvasRequest) -> float:
    """The beginning of the schedule: as given, else by the seed that keeps the most."""
    if body.strength is not None:
        return body.strength
    given = [one.noise for one in body.segments if role_of(one) == "seed"]
    return min((STRENGTH if noise is None else noise for noise in given), default=1.0)


def _noised(
    ids: Sequence[int], noise: float | None, strength: float, draw: random.Random
) -> list[int]:
    """Turn ids into noise, so that `noise` of them are given up in the end, with those that the
    canvas's own `strength` gives up."""
    if noise is None or noise <= strength:
        return list(ids)
    share = 1 - (1 - noise) / (1 - strength)
    return [-1 if draw.random() < share else token for token in ids]
