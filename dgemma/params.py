"""How an answer is drawn: the parameters of a request, their checks and their defaults.

Plain values. Knows nothing about tensors (no torch), files, tokenizers or HTTP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgemma.errors import InvalidRequest, nearest

WIDTH_STEP, END_ROOM = 32, 16
"""An automatic canvas is a multiple of the one, with room for `max_tokens` and the other."""


MOST_ALTERNATIVES = 64

CONSTRAINT_FIELDS = ("json_schema", "regex", "grammar", "choices")
"""Fields that say what an answer as a whole must be."""

COLDEST, HOTTEST, MOST_BIAS = 1e-3, 1e3, 1e9
"""Temperatures and additions to logits beyond these overflow, or vanish, in 32 bits."""

_WORD = 2**31 - 1
_INTEGERS = {
    "max_tokens": (1, _WORD), "seed": (0, 2**64 - 1), "max_steps": (1, 10_000),
    "stability_threshold": (0, _WORD), "thinking_budget": (0, _WORD), "canvas_length": (1, _WORD),
    "min_tokens": (0, _WORD), "logprobs": (0, MOST_ALTERNATIVES), "top_k": (0, _WORD),
}  # fmt: skip
_NUMBERS: dict[str, tuple[float, float | None]] = {
    "entropy_bound": (0, None), "t_min": (COLDEST, HOTTEST), "t_max": (COLDEST, HOTTEST),
    "confidence_threshold": (0, None), "temperature": (0, HOTTEST), "top_p": (0, 1),
    "min_p": (0, 1),
}  # fmt: skip

MOST_STRINGS = {"stop": 32, "bad_words": 1000}
LONGEST_STRING = 256
"""Most strings of a list, and most characters of each: they are looked for at every commit."""

MOST_IDS = {"allowed_token_ids": 2**18, "logprob_token_ids": 1024}
"""Most ids of a list, each counted once: a vocabulary, and what a canvas can report in no time."""


def bounds(name: str) -> tuple[float, float | None]:
    """The least and the most of a number; None: it has no end.

    Between them `temperature` has a gap above 0 up to `COLDEST`, and `top_p` must not be 0.
    """
    return _INTEGERS.get(name) or _NUMBERS[name]


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
        stable_prefix: whether text is told as soon as it can no longer change (released: no):
            after each step the positions from the first on that have settled one by one, by the
            two thresholds above, are pinned, and a "commit" event with `whole` false tells them.
            Not with a language, `bad_words`, a required tool call or a read-only canvas.
        canvas_length: tokens of a canvas, at most the checkpoint's own length, which is the
            default; a narrow canvas costs less. "auto": just wide enough for `max_tokens`.
        stop: strings that end the answer; the text is cut before the one that is complete first
            (of several, the longest). At most 32 of 256 characters each.
        thinking_budget: most thought tokens; at the first canvas border past it the thought
            channel is closed and the answer begins.
        temperature: factor of the schedule's temperatures (1); 0: the likeliest id is proposed
            instead of a draw, all else at the schedule's temperature.
        top_p: keep the likeliest ids until their mass reaches it (1: all), 0 < top_p <= 1.
        top_k: keep so many of the likeliest ids (0: all).
        min_p: keep ids at least that many times as likely as the likeliest (0: all).
        min_tokens: no end id before that many tokens of the answer; at most `max_tokens`.
        logit_bias: additions to the logits of ids, everywhere, before the temperature.
        allowed_token_ids: the only ids an answer may hold, beside the end ids.
        bad_words: strings that the text never holds; checked as canvases are committed. At
            most 1000 of 256 characters each.
        logprobs: report for every token its log-probability and that many alternatives (0 to 64).
        logprob_token_ids: ids whose log-probabilities are reported at every token as well, at
            most 1024; an id given twice counts once.
        json_schema: the answer is JSON that this schema admits; a mapping, its text, or True for
            any JSON. The thought stays free. At most one of this and the next three.
        regex: the answer matches this expression as a whole.
        grammar: the answer belongs to this grammar: Lark in the dialect of llguidance, GBNF, or
            the name of a ready-made one ("markdown-table", "code-fence").
        choices: the answer is one of these strings.

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
    stable_prefix: bool | None = None
    canvas_length: int | Literal["auto"] | None = None
    stop: Sequence[str] | None = None
    thinking_budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    json_schema: Mapping[str, Any] | str | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None and not (name == "canvas_length" and value == "auto"):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise InvalidRequest(f"{name} must be an integer, got {value!r}", field=name)
                if value < least:
                    raise InvalidRequest(
                        f"{name} must be at least {least}, got {value}", field=name
                    )
                if value > most:
                    raise InvalidRequest(f"{name} must be at most {most}, got {value}", field=name)
        for name in _NUMBERS:
            self._number(name)
        for name in ("ignore_tail", "stable_prefix"):
            value = getattr(self, name)
            if not isinstance(value, (bool, type(None))):
                raise InvalidRequest(f"{name} must be true or false, got {value!r}", field=name)
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise InvalidRequest(
                f"t_min {self.t_min} must not be above t_max {self.t_max}", field="t_min"
            )
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} must not be above max_tokens {self.max_tokens}",
                field="min_tokens",
            )
        for name in ("stop", "bad_words", "choices"):
            self._strings(name)
        for name in ("allowed_token_ids", "logprob_token_ids"):
            self._ids(name)
        self._controls()

    def _number(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(f"{name} must be a number, got {value!r}", field=name)
        low = value == 0 and name in ("t_min", "t_max", "top_p")
        if not math.isfinite(value) or value < 0 or low:
            raise InvalidRequest(f"{name} must be positive and finite, got {value}", field=name)
        least, most = _NUMBERS[name]
        least = COLDEST if name == "temperature" and value else least
        if most == HOTTEST and not least <= value <= most:
            raise InvalidRequest(
                f"{name} must be {COLDEST} to {HOTTEST:.0f}, got {value}", field=name
            )
        if most is not None and value > most:
            raise InvalidRequest(f"{name} must be at most {most}, got {value}", field=name)

    def _strings(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        strings = (value,) if isinstance(value, str) else value
        known = isinstance(strings, Sequence) and all(isinstance(s, str) and s for s in strings)
        if not known:
            raise InvalidRequest(f"{name} must be a list of strings that are not empty", field=name)
        strings = tuple(strings)
        most = MOST_STRINGS.get(name)
        if most is not None and len(strings) > most:
            raise InvalidRequest(
                f"{name} holds {len(strings)} strings, more than {most}; give fewer", field=name
            )
        longest = max(map(len, strings), default=0)
        if most is not None and longest > LONGEST_STRING:
            raise InvalidRequest(
                f"{name} holds a string of {longest} characters, more than {LONGEST_STRING}; "
                "shorten it",
                field=name,
            )
        object.__setattr__(self, name, strings)

    def _ids(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        ids = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
        if not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InvalidRequest(
                f"{name} must be a list of token ids that is not empty", field=name
            )
        ids = tuple(dict.fromkeys(ids))
        if len(ids) > MOST_IDS[name]:
            most = MOST_IDS[name]
            raise InvalidRequest(
                f"{name} holds {len(ids)} ids, more than {most}; give fewer", field=name
            )
        object.__setattr__(self, name, ids)

    def _controls(self) -> None:
        if self.logit_bias is not None:
            try:
                bias = {int(i): float(value) for i, value in self.logit_bias.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise InvalidRequest(
                    "logit_bias must map token ids to numbers", field="logit_bias"
                ) from error
            if not all(abs(value) <= MOST_BIAS for value in bias.values()):
                raise InvalidRequest(
                    f"logit_bias must hold numbers of {MOST_BIAS:.0e} at most", field="logit_bias"
                )
            object.__setattr__(self, "logit_bias", bias)
        for name in ("regex", "grammar"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise InvalidRequest(
                    f"{name} must be a string, got {getattr(self, name)!r}", field=name
                )
        if not isinstance(self.json_schema, (Mapping, str, bool, type(None))):
            raise InvalidRequest(
                "json_schema must be a JSON object, its text, or true", field="json_schema"
            )
        if self.choices == ():
            raise InvalidRequest("choices is empty; name at least one", field="choices")
        given = [name for name in CONSTRAINT_FIELDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidRequest(
                f"{given[0]} and {given[1]} cannot be combined; choose one", field=given[0]
            )
        if given and self.stop:
            raise InvalidRequest(
                f"stop and {given[0]} cannot be combined: the text would be cut; drop one of them",
                field="stop",
            )
        if given and self.allowed_token_ids:
            raise InvalidRequest(
                f"allowed_token_ids and {given[0]} cannot be combined; say it in {given[0]}",
                field="allowed_token_ids",
            )
        if given and self.min_tokens:
            raise InvalidRequest(
                f"min_tokens and {given[0]} cannot be combined; ask for the length in {given[0]}",
                field="min_tokens",
            )

    @property
    def constraint_field(self) -> str | None:
        """Which field says what the answer as a whole must be."""
        return next((name for name in CONSTRAINT_FIELDS if getattr(self, name) is not None), None)

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


REFUSED_BY_FILL = (
    "stop", "bad_words", "thinking_budget", "min_tokens", "stable_prefix", *CONSTRAINT_FIELDS,
)  # fmt: skip
"""Fields that filling refuses: they are about a whole answer, and here parts of a text are written
between others that are given."""
REFUSED_BY_EDIT = (*REFUSED_BY_FILL, "allowed_token_ids")
"""Fields that editing and revising refuse: what stands there already may hold any id."""

REFUSED_BY_AUTOREGRESSIVE = (
    "temperature", "top_p", "top_k", "min_p",
    "min_tokens", "logit_bias", "allowed_token_ids", "bad_words", "logprobs", "logprob_token_ids",
    *CONSTRAINT_FIELDS, "seed", "max_steps", "entropy_bound", "t_min", "t_max",
    "confidence_threshold", "stability_threshold", "ignore_tail", "stable_prefix",
    "canvas_length", "thinking_budget",
)  # fmt: skip
"""Fields that the autoregressive mode refuses: it is greedy, so it draws nothing, and it has
neither steps nor canvas borders, and it is the plain baseline, so nothing else steers it."""

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
        raise InvalidRequest(
            f"canvas_length {asked} is above the model's {full}; ask for less",
            field="canvas_length",
        )
    return asked
