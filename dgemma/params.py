"""Sampling parameters: how an answer is drawn, with bounds, help and defaults.

Plain values. It must not know tensors (no torch), files, tokenizers or HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

from dgemma.errors import InvalidRequest, bad_field, nearest
from dgemma.errors import refused as refused
from dgemma.param_rules import (
    COLDEST,
    HOTTEST,
    MOST_ALTERNATIVES,
    MOST_IDS,
    MOST_STRINGS,
    WORD,
    SamplingOption,
    bias_map,
    flag,
    id_list,
    integer,
    number,
    one_word,
    option,
    schema,
    strings,
    text,
)

WIDTH_STEP, END_ROOM = 32, 16
"""An automatic canvas is a multiple of the one, with room for `max_tokens` and the other."""

DEFAULT_TRIES = 4
"""Most times that a canvas is begun if `tries` is not given; see `most_tries`."""

CONSTRAINT_FIELDS = ("json_schema", "regex", "grammar", "choices", "structure")
"""Fields that constrain an answer as a whole; at most one of them is given."""

DRAWN_BITS = 53
"""Bits of a seed that is drawn: a reader of JSON that knows only doubles keeps all its digits."""

_ARGUMENT = "; it is an argument of generate() and chat()"
ELSEWHERE = {"n": _ARGUMENT, "best_of": _ARGUMENT, "stream": "; call stream() for events"}
"""Words that other libraries take among these parameters -> where they belong here."""

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
    restart_after: int | Literal["auto"] | None
    tries: int | None
    race: int | None
    verdict: bool | None
    quality: Literal["careful"] | None
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
    structure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn. `None` means the checkpoint's value, else the released one.

    docs/api.md says more of each field than its one line of help here.

    Raises:
        InvalidRequest: an unknown name, or a value out of range; the message names the field.
    """

    max_tokens: int | None = option(
        integer, "maximum tokens of the answer (to the context's end)", 1, WORD, refused_by=()
    )
    seed: int | None = option(integer, "seed of the answer (drawn; see --json)", 0, 2**64 - 1)
    max_steps: int | None = option(integer, "maximum denoising steps of a canvas", 1, 10_000)
    entropy_bound: float | None = option(number, "nats of summed entropy that a step may accept")
    t_min: float | None = option(number, "temperature at the last step", COLDEST, HOTTEST)
    t_max: float | None = option(number, "temperature at the first step", COLDEST, HOTTEST)
    confidence_threshold: float | None = option(
        number, "mean entropy in nats below which a stable canvas is done"
    )
    stability_threshold: int | None = option(
        integer, "how many earlier canvases must equal the newest", 0, WORD
    )
    ignore_tail: bool | None = option(
        flag, "do not wait for tokens after the first end token to settle"
    )
    stable_prefix: bool | None = option(
        flag, "emit text as soon as it is final, before its canvas is finished",
        refused_by=_WHOLE,
    )  # fmt: skip
    restart_after: int | Literal["auto"] | None = option(
        integer, "restart a canvas that has not converged after N steps; auto: as measured for the "
        "model; 0: never (0)",
        0, 10_000, words=("auto",),
    )  # fmt: skip
    tries: int | None = option(
        integer, "most times that a canvas is begun, by restart_after or quality "
        f"({DEFAULT_TRIES}, or fewer that fit in max_steps)", 1, 64,
    )  # fmt: skip
    race: int | None = option(
        integer, "canvases side by side; the first to converge counts (1)", 1, 16
    )
    verdict: bool | None = option(
        flag, "report the encoder's log-probabilities of the answer", refused_by=_DRAW
    )
    quality: Literal["careful"] | None = option(
        one_word("careful"), "careful: restart a canvas that the encoder finds unlikely"
    )
    canvas_length: int | Literal["auto"] | None = option(
        integer, "tokens of a canvas, or auto: as max_tokens needs (full)", 1, WORD, words=("auto",)
    )
    stop: Sequence[str] | None = option(
        strings, "end before this text; repeatable", most=MOST_STRINGS["stop"],
        refused_by=("fill", "edit"),
    )  # fmt: skip
    thinking_budget: int | None = option(
        integer, "maximum tokens of thought, in chat (no limit)", 0, WORD, refused_by=_WHOLE
    )
    temperature: float | None = option(
        number, "factor of the sampler's temperatures; 0: the top tokens (1)", 0, HOTTEST
    )
    top_p: float | None = option(
        number, "keep the likeliest tokens until their mass reaches X (1)", 0, 1
    )
    top_k: int | None = option(integer, "keep the N likeliest tokens (all)", 0, WORD)
    min_p: float | None = option(
        number, "drop tokens less likely than X times the top token (0)", 0, 1
    )
    min_tokens: int | None = option(
        integer, "no end before N tokens of the answer (0)", 0, WORD, refused_by=_WHOLE
    )
    logit_bias: Mapping[int, float] | None = option(
        bias_map, "add to the logit of an id; repeatable"
    )
    allowed_token_ids: Sequence[int] | None = option(
        id_list, "an id the answer may hold, no other; repeatable",
        most=MOST_IDS["allowed_token_ids"],
        refused_by=("autoregressive", "edit"),
    )  # fmt: skip
    bad_words: Sequence[str] | None = option(
        strings, "the answer never holds this text; repeatable", most=MOST_STRINGS["bad_words"],
        refused_by=_WHOLE,
    )  # fmt: skip
    logprobs: int | None = option(
        integer, "report log-probabilities, and N alternatives of each token",
        0, MOST_ALTERNATIVES,
    )  # fmt: skip
    logprob_token_ids: Sequence[int] | None = option(
        id_list,
        "report the log-probability of this id at every token; repeatable",
        most=MOST_IDS["logprob_token_ids"],
    )
    json_schema: Mapping[str, Any] | str | bool | None = option(
        schema, "JSON that this schema admits: its text, or @FILE; true: any", refused_by=_WHOLE
    )
    regex: str | None = option(
        text, "text that this expression matches as a whole", refused_by=_WHOLE
    )
    grammar: str | None = option(
        text, "text of this grammar: @FILE, markdown-table or code-fence", refused_by=_WHOLE
    )
    choices: Sequence[str] | None = option(strings, "one of these texts", refused_by=_WHOLE)
    structure: str | None = option(
        text, "Markdown: table:NAME,NAME;rows=N, fence:LANGUAGE, list:N, numbered:N or document",
        refused_by=_WHOLE,
    )  # fmt: skip

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
            value, rule = getattr(self, f.name), f.metadata["option"]
            if value is not None:
                object.__setattr__(self, f.name, rule.check(f.name, value, rule))
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise bad_field("t_min", f"{self.t_min} must not be above t_max {self.t_max}")
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            why = f"{self.min_tokens} must not be above max_tokens {self.max_tokens}"
            raise bad_field("min_tokens", why)
        if self.choices == ():
            raise bad_field("choices", "is empty; name at least one")
        self._check_constraint()
        self._check_restarts()

    def _check_restarts(self) -> None:
        for name, on in (("restart_after", self.restart_after), ("race", (self.race or 1) > 1),
                         ("quality", self.quality)):  # fmt: skip
            if on and self.stable_prefix:
                why = "what is emitted early could not be written again; drop one of them"
                raise bad_field(name, f"and stable_prefix cannot be combined: {why}")

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

    @property
    def most_tries(self) -> int:
        """Most times that a canvas is begun."""
        careful = self.quality is not None
        return most_tries(self.tries, self.restart_after, self.max_steps, careful)

    def once(self) -> SamplingParams:
        """The same without restarts and races."""
        return dataclasses.replace(self, restart_after=0, race=1)

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
    tuple(name for name, rule in OPTIONS.items() if mode in rule.refused_by)
    for mode in ("fill", "edit", "autoregressive")
)
REFUSED_BY_EXACT = tuple(
    name for name in REFUSED_BY_AUTOREGRESSIVE if name not in ("seed", "temperature")
)
"""Token by token on drafts: the answer of the autoregressive mode, which may also be drawn."""


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


def most_tries(tries: int | None, after: int | str | None, steps: int | None, careful: bool) -> int:
    """Most times that a canvas is begun, by the fields of the request; "auto" counts as none.

    Without `tries` it is as many of `DEFAULT_TRIES` as fit in `max_steps`, but two at least; a
    canvas that `max_steps` ends before it could be restarted is begun once.
    """
    if tries is not None:
        return tries
    if careful or not isinstance(after, int) or not after:
        return DEFAULT_TRIES
    most = steps or RELEASED.max_steps or 0
    return min(DEFAULT_TRIES, max(2, most // after)) if after < most else 1


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
