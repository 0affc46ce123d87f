"""The plain values that cross the borders between the parts of `dgemma`.

Frozen dataclasses of ints, floats, strings and bytes. Knows nothing about tensors (no torch),
files, tokenizers or HTTP, so a client may import it in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dgemma.errors import InvalidRequest, nearest

FinishReason = Literal["stop", "length", "cancelled", "error"]
EventType = Literal["frame", "commit", "done"]
Mode = Literal["diffusion", "autoregressive"]

WIDTH_STEP, END_ROOM = 32, 16
"""An automatic canvas is a multiple of the one, with room for `max_tokens` and the other."""

PAGE = 64
"""Tokens of a page of the key-value memory."""

MOST_PRIORITY, MOST_SECONDS = 1000, 10**9
"""Bounds of `Request.priority` and of its times."""

ENTROPY_PER_NAT = 64
"""`Event.entropy` holds round(64 x nats) per position, capped at 255 (about 4 nats)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn. `None` means the checkpoint's value, else the released one.

    Attributes:
        max_tokens: most tokens of the answer, end ids not counted; None = to the end of the
            context.
        seed: 64-bit seed of the request; None = drawn, and reported in `Output.seed`.
        max_steps: most denoising steps a canvas (released: 48). Temperatures follow the
            fraction of steps left, so fewer steps also compress the schedule.
        entropy_bound: nats of summed entropy within which a step accepts positions (0.1).
        t_min, t_max: temperature at the last and at the first step (0.4, 0.8).
        confidence_threshold: mean entropy in nats below which a stable canvas is done (0.005).
        stability_threshold: how many earlier argmax canvases must equal the newest (1).
        ignore_tail: whether positions behind the first end id of the draft count as stable and
            certain, since they will be cut off (released: no). A canvas never takes longer.
        canvas_length: tokens of a canvas, at most the checkpoint's own length, which is the
            default; a narrow canvas costs less. "auto": just wide enough for `max_tokens`.
        stop: strings that end the answer; the text is cut before the first of them.
        thinking_budget: most thought tokens; at the first canvas border past it the thought
            channel is closed and the answer begins.

    Raises:
        InvalidRequest: a value out of range; the message names the field.
    """

    max_tokens: int | None = None
    seed: int | None = None
    max_steps: int | None = None
    entropy_bound: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    confidence_threshold: float | None = None
    stability_threshold: int | None = None
    ignore_tail: bool | None = None
    canvas_length: int | Literal["auto"] | None = None
    stop: Sequence[str] | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("seed", 0), ("max_steps", 1),
                            ("stability_threshold", 0), ("thinking_budget", 0),
                            ("canvas_length", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is None or (name == "canvas_length" and value == "auto"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidRequest(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise InvalidRequest(f"{name} must be at least {least}, got {value}")
        if self.seed is not None and self.seed >= 2**64:
            raise InvalidRequest(f"seed must be below 2**64, got {self.seed}")
        for name in ("entropy_bound", "t_min", "t_max", "confidence_threshold"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidRequest(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or value < 0 or (value == 0 and name in ("t_min", "t_max")):
                raise InvalidRequest(f"{name} must be positive and finite, got {value}")
        if self.ignore_tail not in (None, True, False):
            raise InvalidRequest(f"ignore_tail must be true or false, got {self.ignore_tail!r}")
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise InvalidRequest(f"t_min {self.t_min} must not be above t_max {self.t_max}")
        if self.stop is not None:
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            if not all(isinstance(s, str) and s for s in stop):
                raise InvalidRequest("stop must be a list of strings that are not empty")
            object.__setattr__(self, "stop", stop)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """The same from a mapping; an unknown name is refused with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise InvalidRequest(f"unknown parameter {name!r}{nearest(name, known)}")
        return cls(**values)

    def merged(self, defaults: SamplingParams) -> SamplingParams:
        """These parameters with every `None` taken from `defaults`."""
        values = {
            f.name: v if (v := getattr(self, f.name)) is not None else getattr(defaults, f.name)
            for f in dataclasses.fields(self)
        }
        return SamplingParams(**values)


REFUSED_BY_TWIN = (
    "seed", "max_steps", "entropy_bound", "t_min", "t_max", "confidence_threshold",
    "stability_threshold", "ignore_tail", "canvas_length", "thinking_budget",
)  # fmt: skip
"""Fields that the autoregressive mode refuses: it is greedy, so it draws nothing, and it has
neither steps nor canvas borders."""

RELEASED = SamplingParams(
    max_steps=48, entropy_bound=0.1, t_min=0.4, t_max=0.8,
    confidence_threshold=0.005, stability_threshold=1,
)  # fmt: skip
"""The sampler of the released checkpoint (its `generation_config.json`)."""


def canvas_width(params: SamplingParams, full: int) -> int:
    """Tokens of a canvas under `params`, where the checkpoint's own canvas has `full`.

    Raises:
        InvalidRequest: a wider canvas than the checkpoint's.
    """
    asked = params.canvas_length
    if asked is None or (asked == "auto" and params.max_tokens is None):
        return full
    if asked == "auto":
        assert params.max_tokens is not None
        roomy = params.max_tokens + END_ROOM
        return min(full, -(-roomy // WIDTH_STEP) * WIDTH_STEP)
    if asked > full:
        raise InvalidRequest(f"canvas_length {asked} is above the model's {full}; ask for less")
    return asked


@dataclass(frozen=True, slots=True)
class ThoughtIds:
    """What the engine must know of thought channels to keep a thinking budget.

    Attributes:
        open_id, close_id: ids of `<|channel>` and `<channel|>`.
        is_open: the prompt itself ends inside an open thought.
    """

    open_id: int
    close_id: int
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer to be made by the engine.

    Attributes:
        token_ids: the prompt; never empty.
        params: how to draw; None fields are filled by the engine.
        mode: "diffusion", or "autoregressive" for the twin's loop.
        index: the caller's label, copied into every event.
        frames: whether a "frame" event is wanted for each denoising step.
        trace: whether `Output.trace` shall hold every step.
        thought: needed when `params.thinking_budget` is set.
        priority: the highest goes first; 0 is a person who waits, less is for work in the
            background. It never changes the tokens, nor does anything below.
        owner: whose request it is. Owners take turns, however many requests one has.
        slot: a newer request of the same owner and slot cancels this one (an editor's completion).
        deadline_s: seconds after which the request ends with an error, whatever it has.
        patience_s: seconds after which it ends with an error if it has not begun.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    mode: Mode = "diffusion"
    index: int = 0
    frames: bool = False
    trace: bool = False
    thought: ThoughtIds | None = None
    priority: int = 0
    owner: str = ""
    slot: str = ""
    deadline_s: float | None = None
    patience_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("owner", "slot"):
            if not isinstance(getattr(self, name), str):
                raise InvalidRequest(f"{name} must be a string, got {getattr(self, name)!r}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise InvalidRequest(f"priority must be an integer, got {self.priority!r}")
        if abs(self.priority) > MOST_PRIORITY:
            raise InvalidRequest(
                f"priority must be -{MOST_PRIORITY} to {MOST_PRIORITY}, got {self.priority}"
            )
        for name in ("deadline_s", "patience_s"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= MOST_SECONDS:
                raise InvalidRequest(
                    f"{name} must be above 0 and at most {MOST_SECONDS} seconds, got {value!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost. `steps` counts denoising steps (or model passes of the twin)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    canvases: int = 0
    steps: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens per denoising step; 0.0 before the first step."""
        return self.completion_tokens / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStep:
    """One denoising step as it happened.

    Attributes:
        canvas, step: counted from 0.
        temperature: of this step.
        ids: the canvas the network read.
        argmax: the most likely id of each position.
        accepted: 1 where the sample was accepted, else 0, one byte a position.
        entropy: nats of each position under the tempered distribution.
        reason: why the canvas ended here: "converged", "step_cap", or "" if it went on.
    """

    canvas: int
    step: int
    temperature: float
    ids: tuple[int, ...]
    argmax: tuple[int, ...]
    accepted: bytes
    entropy: tuple[float, ...]
    reason: Literal["", "converged", "step_cap"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the model asked for: the name and the arguments as plain JSON values."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished answer.

    Attributes:
        text: the answer, without thought, tool calls and end ids.
        token_ids: all committed ids before the first end id (thought and calls included).
        seed: the seed that was used, drawn or given.
        finish_reason: "stop", "length", "cancelled" or "error".
        usage: counts of tokens, canvases and steps.
        thinking: the text of the thought channel, None where there was none.
        tool_calls: the calls in the order in which they were written.
        error: what went wrong, where `finish_reason` is "error".
        trace: every step, where the request asked for it.
        index: the request's label.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    seed: int = 0
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    error: str | None = None
    trace: tuple[TraceStep, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a request.

    Attributes:
        type: "frame" (one per denoising step), "commit" (one per canvas) or "done" (the last).
        index: the request's label.
        canvas, step: counted from 0; a commit's step is the number of steps it took.
        ids: a frame's argmax draft, or the committed ids (cut at the first end id).
        text: `ids` as text; filled in by `LLM`.
        accepted: one byte a position, 1 where this step accepted its sample.
        entropy: one byte a position, see `ENTROPY_PER_NAT`.
        output: the finished answer, on "done" alone.
    """

    type: EventType
    index: int = 0
    canvas: int = 0
    step: int = 0
    ids: tuple[int, ...] = ()
    text: str = ""
    accepted: bytes = b""
    entropy: bytes = b""
    output: Output | None = None
