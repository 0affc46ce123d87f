"""The smaller values that a `Request` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple

from dgemma.errors import InvalidRequest, bad_field
from dgemma.param_rules import BYTES, MOST_BIAS
from dgemma.params import refused


def checked_ids(name: str, value: object) -> tuple[int, ...]:
    """Integers as a tuple.

    Raises:
        InvalidRequest: it is no sequence of integers; bytes are not taken for one.
    """
    if isinstance(value, (str, *BYTES)) or not isinstance(value, Sequence):
        raise refused(name, "be a sequence of integers", value)
    ids = value if isinstance(value, tuple) else tuple(value)
    kinds = set(map(type, ids)) - {int}
    for kind in kinds:
        if kind is bool or not issubclass(kind, Integral):
            raise refused(name, f"hold integers alone, not {kind.__name__}")
    return tuple(map(int, ids)) if kinds else ids


def check_types(value: object, kinds: Mapping[str, tuple[type | tuple[type, ...], str]]) -> None:
    """Refuse fields of a value that are of another type.

    Args:
        kinds: for each field its types, and the words for them; an integer is not a bool.
    """
    for name, (kind, said) in kinds.items():
        found = getattr(value, name)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise refused(name, f"be {said}", found)


@dataclass(frozen=True, slots=True)
class ThoughtIds:
    """The ids of thought channels, for a thinking budget.

    Attributes:
        open_id, close_id: ids of `<|channel>` and `<channel|>`.
        is_open: whether the prompt itself ends inside an open thought.
    """

    open_id: int
    close_id: int
    is_open: bool = False


def function_of(tool: Any) -> Mapping[str, Any]:
    """The function that a tool declares, with or without the outer `function`; {}: none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return function if isinstance(function, Mapping) else {}


class ToolUse(NamedTuple):
    """The tools that an answer may call.

    Attributes:
        tools: in OpenAI's form.
        name: of the only one that may be called; None: any.
        required: the answer is a call. Else it is free, but calls of strict tools keep to them.
    """

    tools: Sequence[Mapping[str, Any]]
    name: str | None = None
    required: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The tools that may be called."""
        if self.name is not None:
            return frozenset((self.name,))
        names = (function_of(tool).get("name") for tool in self.tools)
        return frozenset(name for name in names if isinstance(name, str))

    @property
    def binding(self) -> bool:
        """Whether the answer must be kept to a grammar."""
        return self.required or any(function_of(tool).get("strict") for tool in self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasControl:
    """The caller's control of the first canvas of a request; positions count from 0.

    Attributes:
        ids: the beginning of the canvas, one id a position; -1, or past the end: noise.
        pinned: positions that keep their id to the end. They count neither for the positions that
            a step accepts nor for the end of the canvas.
        strength: how much of the other given ids gives way to noise, 0 (none) to 1 (all); the
            temperatures begin at the step that leaves that much of the schedule.
        allowed: lists of ids.
        masks: for each position the list of `allowed` that holds there; -1, or past the end: any
            id.
        bias: (position, id, value): additions to logits before the temperature.
        read_only: make `max_steps` steps (1 if it is not set), report the canvas and its scores,
            and commit nothing.

    Raises:
        InvalidRequest: fields that contradict each other.
    """

    ids: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    strength: float = 1.0
    allowed: tuple[tuple[int, ...], ...] = ()
    masks: tuple[int, ...] = ()
    bias: tuple[tuple[int, int, float], ...] = ()
    read_only: bool = False

    def __post_init__(self) -> None:
        check_types(self, {
            "strength": ((int, float), "a number"), "read_only": (bool, "true or false"),
            "allowed": ((tuple, list), "lists of ids"), "bias": ((tuple, list), "a list"),
        })  # fmt: skip
        for name in ("ids", "pinned", "masks"):
            object.__setattr__(self, name, checked_ids(name, getattr(self, name)))
        allowed = tuple(checked_ids("allowed", one) for one in self.allowed)
        object.__setattr__(self, "allowed", allowed)
        if not 0 <= self.strength <= 1:
            raise refused("strength", "be 0 to 1", self.strength)
        for position in self.pinned:
            if not 0 <= position < len(self.ids) or self.ids[position] < 0:
                raise InvalidRequest(f"position {position} is pinned but has no id", field="pinned")
        for number, ids in enumerate(self.allowed):
            if not ids:
                raise InvalidRequest(f"list {number} of allowed ids is empty")
        if not all(-1 <= mask < len(self.allowed) for mask in self.masks):
            raise bad_field("masks", "name a list of allowed ids that is not there")
        held = set(self.pinned)
        for position, mask in enumerate(self.masks):
            if mask >= 0 and position in held and self.ids[position] not in self.allowed[mask]:
                raise InvalidRequest(
                    f"position {position} is pinned to id {self.ids[position]}, which its list of "
                    "allowed ids does not hold; drop one of the two"
                )
        if not all(map(_is_bias, self.bias)):
            raise bad_field(
                "bias", "needs triples of a position from 0, an id, and a finite value, "
                f"{MOST_BIAS:.0e} at most",
            )  # fmt: skip


def _is_bias(value: object) -> bool:
    """Whether it is a position, an id and an addition to its logit."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        return False
    position, token_id, added = value
    if any(isinstance(one, bool) for one in value):
        return False
    integers = isinstance(position, int) and isinstance(token_id, int) and position >= 0
    return integers and isinstance(added, (int, float)) and abs(added) <= MOST_BIAS


EDITS = ("pin", "ban", "renoise")
MOST_EDITS = 1024
"""Edits of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasEdit:
    """A change to a canvas before one of its steps; all numbers count from 0, as in a "frame".

    Attributes:
        canvas, attempt, step: before which step of which try.
        position: of the canvas.
        do: "pin" (it holds `id` from then on), "ban" (it never holds `id` from then on) or
            "renoise" (it gets fresh noise, and no belief, for this step).
        id: the token's; None for "renoise".

    Raises:
        InvalidRequest: no such edit, or an id where none belongs.
    """

    canvas: int = 0
    attempt: int = 0
    step: int
    position: int
    do: Literal["pin", "ban", "renoise"]
    id: int | None = None

    def __post_init__(self) -> None:
        for name in ("canvas", "attempt", "step", "position", "id"):
            value = getattr(self, name)
            if name == "id" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise refused(f"edits.{name}", "be an integer of at least 0", value)
        if self.do not in EDITS:
            raise refused("edits.do", f"be one of {', '.join(EDITS)}", self.do)
        if (self.id is None) != (self.do == "renoise"):
            must = "have no id" if self.id is not None else "have an id"
            raise bad_field("edits", f"that {self.do} must {must}")

    @property
    def place(self) -> tuple[int, int, int]:
        """Canvas, try and step."""
        return self.canvas, self.attempt, self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContent:
    """Ids of a prompt that stand for other content, such as an image.

    Attributes:
        start, length: their place in the prompt.
        key: names the content and all that its keys and values depend on, such as a hash of an
            image's bytes and its budget of tokens. Equal ids with other keys are other content.

    Raises:
        InvalidRequest: no place, or no key.
    """

    start: int
    length: int
    key: str

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("length", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise refused(f"contents.{name}", f"be an integer of at least {least}", value)
        if not isinstance(self.key, str) or not self.key:
            raise refused("contents.key", "be a string that is not empty", self.key)
