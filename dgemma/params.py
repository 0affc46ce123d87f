"""Sampling parameters: how an answer is drawn, with bounds, help and defaults.

Plain values. It must not know tensors (no torch), files, tokenizers or HTTP.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

from dgemma.errors import InvalidRequest, bad_field, nearest
from dgemma.errors import refused as refused

WIDTH_STEP, END_ROOM = 32, 16
"""An automatic canvas is a multiple of the one, with room for `max_tokens` and the other."""

MOST_ALTERNATIVES = 64

CONSTRAINT_FIELDS = ("json_schema", "regex", "grammar", "choices")
"""Fields that constrain an answer as a whole; at most one of them is given."""

COLDEST, HOTTEST, MOST_BIAS = 1e-3, 1e3, 1e9
"""Temperatures and additions to logits beyond these overflow, or vanish, in 32 bits."""

BYTES = (bytes, bytearray, memoryview)
"""Sequences of integers that nobody means as token ids."""

MOST_STRINGS, LONGEST_STRING = {"stop": 32, "bad_words": 1000}, 256
"""Most strings of a list, and most characters of each: every commit is searched for them."""

MOST_IDS = {"allowed_token_ids": 2**18, "logprob_token_ids": 1024}
"""Most ids of a list, each counted once: a vocabulary, and as many as a canvas reports quickly."""

DRAWN_BITS = 53
"""Bits of a seed that is drawn: a reader of JSON that knows only doubles keeps all its digits."""

_ARGUMENT = "; it is an argument of generate() and chat()"
ELSEWHERE = {"n": _ARGUMENT, "best_of": _ARGUMENT, "stream": "; call stream() for events"}
"""Words that other libraries take among these parameters -> where they belong here."""

_WORD = 2**31 - 1
_DRAW, _WHOLE = ("autoregressive",), ("autoregressive", "fill", "edit")


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments of other calls."""

    max_tokens: int | None
    seed: int | None
    max_steps: int | None
    entropy_bound: float | None
    t_min: float | None
    t_max: float | None
    confidence_threshold: float | None
    stability_threshold: int | None
    ignore_tail: bool | None
    stable_prefix: bool | None
    canvas_length: int | Literal["auto"] | None
    stop: Sequence[str] | None
    thinking_budget: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    min_tokens: int | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str] | None
    logprobs: int | None
    logprob_token_ids: Sequence[int] | None
    json_schema: Mapping[str, Any] | str | bool | None
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class SamplingOption:
    """The rule of one field of `SamplingParams`.

    Attributes:
        check: from name, value and rule to the value's plain form.
        help: one line for people.
        least, most: bounds of a number; `most` members of a list; None: no end.
        refused_by: "autoregressive" (it is greedy, so it draws nothing; it has neither steps nor
            canvases; and as the plain baseline it is not steered), "fill" (parts of a text are
            written between others, so nothing may be said of the whole), "edit" (the text that is
            there may hold any id).
    """

    check: Callable[[str, Any, SamplingOption], object]
    help: str
    least: float = 0
    most: float | None = None
    refused_by: tuple[str, ...] = _DRAW


def _option(*rule: Any, **more: Any) -> Any:
    return dataclasses.field(default=None, metadata={"option": SamplingOption(*rule, **more)})


def _integer(name: str, value: Any, option: SamplingOption) -> object:
    if name == "canvas_length" and value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused(name, "be an integer", value)
    if value < option.least:
        raise refused(name, f"be at least {option.least}", value)
    if option.most is not None and value > option.most:
        raise refused(name, f"be at most {option.most}", value)
    return value


def _number(name: str, value: Any, option: SamplingOption) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refused(name, "be a number", value)
    least, most = option.least, option.most
    if most == HOTTEST:
        fits = COLDEST <= value <= HOTTEST or value == least == 0
        must = f"{'' if least else '0, or '}{COLDEST} to {HOTTEST:.0f}"
    elif most is None:
        fits, must = least <= value <= sys.float_info.max, f"at least {least} and finite"
    elif name == "top_p":
        fits, must = least < value <= most, f"above {least} and at most {most}"
    else:
        fits, must = least <= value <= most, f"{least} to {most}"
    if not fits:
        raise refused(name, f"be {must}", value)
    return value


def _strings(name: str, value: Any, option: SamplingOption) -> object:
    strings = (value,) if isinstance(value, str) else value
    if (
        isinstance(value, BYTES)
        or not isinstance(strings, Sequence)
        or not all(isinstance(s, str) and s for s in strings)
    ):
        raise refused(name, "be a list of strings that are not empty")
    longest = max(map(len, strings), default=0)
    if option.most is not None and longest > LONGEST_STRING:
        why = f"holds a string of {longest} characters, more than {LONGEST_STRING}; shorten it"
        raise bad_field(name, why)
    return _few(name, tuple(strings), "strings", option)


def _ids(name: str, value: Any, option: SamplingOption) -> object:
    given = isinstance(value, Sequence) and not isinstance(value, (str, *BYTES))
    ids = tuple(value) if given else ()
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise refused(name, "be a list of token ids that is not empty")
    if max(map(abs, ids)) > _WORD:
        raise refused(name, f"hold ids of at most {_WORD}")
    return _few(name, tuple(dict.fromkeys(ids)), "ids", option)


def _few(name: str, values: tuple[object, ...], kind: str, option: SamplingOption) -> object:
    if option.most is not None and len(values) > option.most:
        raise bad_field(name, f"holds {len(values)} {kind}, more than {option.most}; give fewer")
    return values


def _bias(name: str, value: Any, option: SamplingOption) -> object:
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {None: None}
    known = all(type(i) in (int, str) and type(added) in (int, float) for i, added in given.items())
    try:
        bias = {int(i): float(added) for i, added in given.items()} if known else None
    except (ValueError, OverflowError):
        bias = None
    if bias is None:
        raise refused(name, "map token ids to numbers")
    if not all(abs(i) <= _WORD and abs(added) <= MOST_BIAS for i, added in bias.items()):
        raise refused(name, f"hold ids of at most {_WORD} and numbers of {MOST_BIAS:.0e} at most")
    return bias


def _one_of(said: str, *types: type, echo: bool = True) -> Any:
    """A value of one of these types; `said` completes "must be"."""

    def check(name: str, value: Any, option: SamplingOption) -> object:
        if isinstance(value, types):
            return value
        raise refused(name, f"be {said}", *[value] * echo)

    return check


_flag = _one_of("true or false", bool)
_text = _one_of("a string", str)
_schema = _one_of("a JSON object, its text, or true", Mapping, str, bool, echo=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn. `None` means the checkpoint's value, else the released one.

    docs/api.md says more of each field than its one line of help here.

    Raises:
        InvalidRequest: an unknown name, or a value out of range; the message names the field.
    """

    max_tokens: int | None = _option(
        _integer, "maximum tokens of the answer (to the context's end)", 1, _WORD, refused_by=()
    )
    seed: int | None = _option(_integer, "seed of the answer (drawn; see --json)", 0, 2**64 - 1)
    max_steps: int | None = _option(_integer, "maximum denoising steps of a canvas", 1, 10_000)
    entropy_bound: float | None = _option(_number, "nats of summed entropy that a step may accept")
    t_min: float | None = _option(_number, "temperature at the last step", COLDEST, HOTTEST)
    t_max: float | None = _option(_number, "temperature at the first step", COLDEST, HOTTEST)
    confidence_threshold: float | None = _option(
        _number, "mean entropy in nats below which a stable canvas is done"
    )
    stability_threshold: int | None = _option(
        _integer, "how many earlier canvases must equal the newest", 0, _WORD
    )
    ignore_tail: bool | None = _option(
        _flag, "do not wait for tokens after the first end token to settle"
    )
    stable_prefix: bool | None = _option(
        _flag, "emit text as soon as it is final, before its canvas is finished",
        refused_by=_WHOLE,
    )  # fmt: skip
    canvas_length: int | Literal["auto"] | None = _option(
        _integer, "tokens of a canvas, or auto: as max_tokens needs (full)", 1, _WORD
    )
    stop: Sequence[str] | None = _option(
        _strings, "end before this text; repeatable", most=MOST_STRINGS["stop"],
        refused_by=("fill", "edit"),
    )  # fmt: skip
    thinking_budget: int | None = _option(
        _integer, "maximum tokens of thought, in chat (no limit)", 0, _WORD, refused_by=_WHOLE
    )
    temperature: float | None = _option(
        _number, "factor of the sampler's temperatures; 0: the top tokens (1)", 0, HOTTEST
    )
    top_p: float | None = _option(
        _number, "keep the likeliest tokens until their mass reaches X (1)", 0, 1
    )
    top_k: int | None = _option(_integer, "keep the N likeliest tokens (all)", 0, _WORD)
    min_p: float | None = _option(
        _number, "drop tokens less likely than X times the top token (0)", 0, 1
    )
    min_tokens: int | None = _option(
        _integer, "no end before N tokens of the answer (0)", 0, _WORD, refused_by=_WHOLE
    )
    logit_bias: Mapping[int, float] | None = _option(_bias, "add to the logit of an id; repeatable")
    allowed_token_ids: Sequence[int] | None = _option(
        _ids, "an id the answer may hold, no other; repeatable", most=MOST_IDS["allowed_token_ids"],
        refused_by=("autoregressive", "edit"),
    )  # fmt: skip
    bad_words: Sequence[str] | None = _option(
        _strings, "the answer never holds this text; repeatable", most=MOST_STRINGS["bad_words"],
        refused_by=_WHOLE,
    )  # fmt: skip
    logprobs: int | None = _option(
        _integer, "report log-probabilities, and N alternatives of each token",
        0, MOST_ALTERNATIVES,
    )  # fmt: skip
    logprob_token_ids: Sequence[int] | None = _option(
        _ids,
        "report the log-probability of this id at every token; repeatable",
        most=MOST_IDS["logprob_token_ids"],
    )
    json_schema: Mapping[str, Any] | str | bool | None = _option(
        _schema, "JSON that this schema admits: its text, or @FILE; true: any", refused_by=_WHOLE
    )
    regex: str | None = _option(
        _text, "text that this expression matches as a whole", refused_by=_WHOLE
    )
    grammar: str | None = _option(
        _text, "text of this grammar: @FILE, markdown-table or code-fence", refused_by=_WHOLE
    )
    choices: Sequence[str] | None = _option(_strings, "one of these texts", refused_by=_WHOLE)

    def __new__(cls, *_: Any, **fields: Any) -> SamplingParams:
        """Refuses an unknown name before `__init__` does so without a hint."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                hint = ELSEWHERE.get(name) or nearest(name, known)
                raise InvalidRequest(f"unknown parameter {name!r}{hint}", field=name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, option = getattr(self, f.name), f.metadata["option"]
            if value is not None:
                object.__setattr__(self, f.name, option.check(f.name, value, option))
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise bad_field("t_min", f"{self.t_min} must not be above t_max {self.t_max}")
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            why = f"{self.min_tokens} must not be above max_tokens {self.max_tokens}"
            raise bad_field("min_tokens", why)
        if self.choices == ():
            raise bad_field("choices", "is empty; name at least one")
        self._check_constraint()

    def _check_constraint(self) -> None:
        given = [name for name in CONSTRAINT_FIELDS if getattr(self, name) is not None]
        if not given:
            return
        if len(given) > 1:
            raise bad_field(given[0], f"and {given[1]} cannot be combined; choose one")
        for name, remedy in (
            ("stop", "the text would be cut; drop one of them"),
            ("allowed_token_ids", f"say it in {given[0]}"),
            ("min_tokens", f"ask for the length in {given[0]}"),
        ):
            if getattr(self, name):
                raise bad_field(name, f"and {given[0]} cannot be combined; {remedy}")

    @property
    def constraint_field(self) -> str | None:
        """The field that constrains the answer as a whole, if one does."""
        return next((name for name in CONSTRAINT_FIELDS if getattr(self, name) is not None), None)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SamplingParams:
        """The same from a mapping."""
        return cls(**fields)

    @classmethod
    def of(cls, params: Params, **fields: Unpack[SamplingKeywords]) -> SamplingParams:
        """Parameters in any form, None for all defaults, with some fields replaced.

        Raises:
            InvalidRequest: as for the class itself, or `params` of another type.
        """
        if params is None:
            return cls(**fields)
        if isinstance(params, Mapping):
            return cls(**{**params, **fields})
        if not isinstance(params, SamplingParams):
            raise InvalidRequest(f"params must be SamplingParams, got {type(params).__name__}")
        return dataclasses.replace(params, **fields)

    def merged(self, *defaults: SamplingParams, **last: Unpack[SamplingKeywords]) -> SamplingParams:
        """These parameters with every `None` taken from the first of `defaults` that has a value.

        Args:
            last: what none of them has.
        """
        found: dict[str, Any] = {}
        for name in OPTIONS:
            if getattr(self, name) is None:
                given = (v for one in defaults if (v := getattr(one, name)) is not None)
                value = next(given, last.get(name))
                if value is not None:
                    found[name] = value
        return dataclasses.replace(self, **found) if found else self


Params = SamplingParams | Mapping[str, Any] | None
"""Parameters as calls take them; None: all defaults."""

OPTIONS: dict[str, SamplingOption] = {
    f.name: f.metadata["option"] for f in dataclasses.fields(SamplingParams)
}
REFUSED_BY_FILL, REFUSED_BY_EDIT, REFUSED_BY_AUTOREGRESSIVE = (
    tuple(name for name, option in OPTIONS.items() if mode in option.refused_by)
    for mode in ("fill", "edit", "autoregressive")
)


def bounds(name: str) -> tuple[float, float | None]:
    """The least and the most of a number; None: it has no end.

    Between them `temperature` has a gap above 0 up to `COLDEST`, and `top_p` must not be 0.
    """
    return OPTIONS[name].least, OPTIONS[name].most


RELEASED = SamplingParams(
    max_steps=48, entropy_bound=0.1, t_min=0.4, t_max=0.8,
    confidence_threshold=0.005, stability_threshold=1,
)  # fmt: skip
"""The sampler of the released checkpoint (its `generation_config.json`)."""


def canvas_width(params: SamplingParams, full: int) -> int:
    """Tokens of a canvas under `params`; the checkpoint's own canvas has `full`.

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
        raise bad_field("canvas_length", f"{asked} is above the model's {full}; ask for less")
    return asked
