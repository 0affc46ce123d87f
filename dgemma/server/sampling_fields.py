"""The sampling fields that all APIs share, and the same as `SamplingParams`.

Knows OpenAI's, vLLM's and our own names for them. Knows nothing about prompts or replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from dgemma.errors import InvalidRequest, bad_field
from dgemma.frontend import ModelFacts
from dgemma.param_rules import COLDEST, HOTTEST, LONGEST_STRING, MOST_IDS, MOST_STRINGS, WORD
from dgemma.params import CONSTRAINT_FIELDS, SamplingParams, bounds, canvas_width
from dgemma.request_parts import MOST_EDITS, CanvasEdit
from dgemma.server.limits import check_limit, check_restarts, check_schema
from dgemma.server.request_body import Body, Ignorable, at_most, neutral, refuse
from dgemma.server.settings import ServerLimits
from dgemma.types import MOST_SHOWN, CanvasControl

PREDICTION_STRENGTH = 0.5
"""The share of a prediction that gives way to noise, unless `diffusion.strength` is given."""

VLLM_NAMES = {"json_schema": "json", "regex": "regex", "grammar": "grammar", "choices": "choice"}
"""Fields of `SamplingParams` that constrain an answer -> vLLM's names for them."""
_PARAMS = [field.name for field in fields(SamplingParams)]
_NO_PENALTY = "penalties are not built in: a canvas is drawn at once, not token by token"
_SAME = (
    "max_steps", "canvas_length", "restart_after", "tries", "race", "verdict", "quality",
)  # fmt: skip
"""Fields of a `diffusion` object that are also `diffusion_*` fields beside it."""
Penalty = Annotated[float | None, neutral(0, why=_NO_PENALTY)]
RepetitionPenalty = Annotated[float | None, neutral(1, why=_NO_PENALTY)]
OneAnswer = Annotated[
    int | None, neutral(1, why="one text is made at a time", remedy="send several requests")
]
Share = Annotated[float, Field(ge=0, le=1)]
MOST_TOKENS = MOST_IDS["allowed_token_ids"]
"""Ids of one list, repeats counted: as many as the largest vocabulary or context has."""
MOST_BIASED = 16_384
"""Ids of a `logit_bias`."""
_ID = re.compile(r"0|[1-9][0-9]*", re.ASCII)
LONGEST_ID = 10
"""Digits of an id that is a name, as in `logit_bias`."""
Ids = Annotated[
    list[int], Field(fail_fast=True, max_length=MOST_TOKENS), at_most(MOST_TOKENS, "ids")
]
SetOfIds = Annotated[Ids, AfterValidator(lambda ids: list(dict.fromkeys(ids)))]
"""Ids without repetition."""
TopK = Annotated[
    int | None,
    Field(ge=-1, le=bounds("top_k")[1], description="0 or -1: all"),
    AfterValidator(lambda value: 0 if value == -1 else value),
]
Count = Annotated[int, Field(ge=0, le=WORD)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]],
    Field(max_length=MOST_STRINGS["stop"]),
]
RestartAfter = (
    Annotated[int, Field(ge=bounds("restart_after")[0], le=bounds("restart_after")[1])]
    | Literal["auto"]
)
_WARMTH = f"0, or {COLDEST} to {HOTTEST:.0f}"


def bounded(name: str, default: Any = None, description: str | None = None) -> Any:
    """A field with the bounds that `SamplingParams` has for a number."""
    least, most = bounds(name)
    above, from_ = (least, None) if name == "top_p" else (None, least)
    return Field(default=default, gt=above, ge=from_, le=most, description=description)


def strings(name: str) -> Any:
    """A field of strings, which `SamplingParams` counts."""
    about = f"at most {MOST_STRINGS[name]} strings of {LONGEST_STRING} characters"
    return Field(default=None, description=about)


class Edit(Body):
    """A change to a canvas before one of its steps; the numbers are those of its frames."""

    canvas: Count = 0
    attempt: Count = Field(default=0, alias="try")
    step: Count
    position: Count
    do: Literal["pin", "ban", "renoise"]
    id: Count | None = Field(default=None, description="the token to pin or to ban")


class Diffusion(Body):
    """How the canvas is denoised, and which drafts are sent.

    Attributes:
        PATHS: for `Body.NAMES` of a request that has such an object.
        INSIDE: for its `Body.HINTS`: a field that stands beside the object belongs within.
    """

    PATHS: ClassVar[Mapping[str, Sequence[str]]]
    INSIDE: ClassVar[Mapping[str, str]]

    max_steps: int | None = bounded("max_steps", description="most denoising steps a canvas")
    entropy_bound: float | None = bounded("entropy_bound", description="nats a step may accept")
    t_min: float | None = bounded("t_min", description="temperature at the last step")
    t_max: float | None = bounded("t_max", description="temperature at the first step")
    confidence_threshold: float | None = bounded("confidence_threshold")
    stability_threshold: int | None = bounded("stability_threshold")
    ignore_tail: bool | None = None
    restart_after: RestartAfter | None = Field(
        default=None, description="steps after which a canvas is begun anew; 0: never"
    )
    tries: int | None = bounded("tries", description="most times that a canvas is begun")
    race: int | None = bounded("race", description="canvases side by side; the first counts")
    verdict: bool | None = Field(
        default=None, description="report the encoder's opinion of the answer"
    )
    quality: Literal["careful"] | None = Field(
        default=None, description="begin a canvas anew that the encoder finds unlikely"
    )
    canvas_length: int | Literal["auto"] | None = None
    strength: Share | None = Field(
        default=None, description="how much of a prediction or a seed gives way to noise"
    )
    stream: Literal["off", "text", "tokens", "ids"] = Field(
        default="off", description="drafts as side events of a stream; ids: each piece once"
    )
    stream_interval: int = Field(default=1, ge=1, description="show every so many steps")
    stream_search: bool = Field(
        default=False, description="show drafts that only look for something, such as lengths"
    )
    stream_alternatives: int = Field(
        default=0, ge=0, le=MOST_SHOWN, description="likeliest ids of each position, with ids"
    )
    stable_prefix: bool | None = Field(
        default=None, description="send text as soon as it can no longer change"
    )
    structure: str | None = Field(
        default=None, description="Markdown of this form, such as table:Name,Age"
    )
    edits: Annotated[
        list[Edit] | None,
        Field(fail_fast=True, max_length=MOST_EDITS),
        at_most(MOST_EDITS, "edits"),
    ] = Field(default=None, description="changes to canvases, each before one step")

    def canvas_edits(self) -> tuple[CanvasEdit, ...]:
        """The edits.

        Raises:
            InvalidRequest: one lacks its id, or has one that means nothing.
        """
        return tuple(CanvasEdit(**dict(edit)) for edit in self.edits or ())


def check_drafts(shown: Diffusion, stream: bool | None) -> None:
    """Refuse drafts where nothing is streamed, and fields about drafts where none are asked for."""
    if shown.stream != "off" and not stream:
        raise refuse("diffusion.stream", "needs stream: true")
    if shown.stream_alternatives and shown.stream != "ids":
        raise refuse(
            "diffusion.stream_alternatives", "come with ids; set diffusion.stream to 'ids'"
        )
    for name in ("stream_interval", "stream_search"):
        if shown.stream == "off" and getattr(shown, name) != Diffusion.model_fields[name].default:
            raise refuse(f"diffusion.{name}", "needs drafts; set diffusion.stream")


Diffusion.PATHS = {name: (f"diffusion.{name}",) for name in Diffusion.model_fields}
Diffusion.INSIDE = {
    name: f"belongs in the diffusion object; send diffusion.{name}"
    for name in Diffusion.model_fields
}


class Prediction(Body):
    """OpenAI's predicted output: a text like the answer."""

    type: Literal["content"]
    content: str | list[TextPart]

    def text(self) -> str:
        """The predicted text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TextPart(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class SamplingFields(Ignorable):
    """The fields that all APIs share."""

    HINTS: ClassVar[Mapping[str, str]] = {
        **Diffusion.INSIDE,
        "diffusing": "belongs to /v1/chat/completions; use diffusion.stream",
        "diffusion_samples": "diffusion_samples is not built in; ask /v1/decisions for samples",
        "diffusion_constrained": "diffusion_constrained is not built in; use allowed_token_ids",
    }
    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **Diffusion.PATHS,
        **{
            name: (f"diffusion.{name}", f"diffusion_{name}", f"vllm_xargs.diffusion_{name}")
            for name in _SAME
        },
        **{name: (f"guided_{short}",) for name, short in VLLM_NAMES.items()},
        "ids": ("diffusion_seed_canvas", "vllm_xargs.diffusion_seed_canvas"),
        "pinned": ("diffusion_pinned", "vllm_xargs.diffusion_pinned"),
        "logprob_token_ids": ("logprob_token_ids", "vllm_xargs.logprob_token_ids"),
    }  # fmt: skip

    max_tokens: int | None = bounded("max_tokens", description="most tokens of the answer")
    seed: int | None = bounded("seed")
    temperature: float | None = bounded(
        "temperature",
        description=f"factor of the schedule's temperatures, {_WARMTH}; 0: the likeliest ids",
    )
    top_p: float | None = bounded("top_p")
    top_k: TopK = None
    min_p: float | None = bounded("min_p")
    stop: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | None,
        at_most(MOST_STRINGS["stop"], "strings"),
    ] = strings("stop")
    min_tokens: int | None = bounded("min_tokens")
    logit_bias: Annotated[
        dict[str, float] | None, Field(max_length=MOST_BIASED), at_most(MOST_BIASED, "ids")
    ] = None
    bad_words: Annotated[
        list[str] | None, Field(fail_fast=True), at_most(MOST_STRINGS["bad_words"], "strings")
    ] = strings("bad_words")
    allowed_token_ids: SetOfIds | None = None
    logprob_token_ids: SetOfIds | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: RepetitionPenalty = None
    diffusion: Diffusion | None = None
    diffusion_max_steps: int | None = bounded("max_steps")
    diffusion_canvas_length: int | Literal["auto"] | None = None
    diffusion_restart_after: RestartAfter | None = None
    diffusion_tries: int | None = bounded("tries")
    diffusion_race: int | None = bounded("race")
    diffusion_verdict: bool | None = None
    diffusion_quality: Literal["careful"] | None = None
    diffusion_seed_canvas: Ids | None = Field(
        default=None, description="ids that the first canvas begins with"
    )
    diffusion_pinned: Ids | None = Field(default=None, description="positions that keep their id")
    diffusion_read_only: bool | None = Field(
        default=None, description="make max_steps steps (1), report the canvas, commit nothing"
    )
    vllm_xargs: dict[str, Any] | None = Field(
        default=None, description="the diffusion_* fields, as vLLM's clients send them"
    )

    @model_validator(mode="before")
    @classmethod
    def _unpacked(cls, given: Any) -> Any:
        """Move the fields of `vllm_xargs` to the top."""
        if not isinstance(given, dict) or not isinstance(given.get("vllm_xargs"), dict):
            return given
        known = [name for name in cls.model_fields if name.startswith("diffusion_")]
        inner = given["vllm_xargs"]
        for name in inner:
            if name not in (*known, "logprob_token_ids") or given.get(name) is not None:
                twice = name in given
                why = "it is given twice" if twice else f"use only {', '.join(known)}"
                raise refuse(f"vllm_xargs.{name}", why)
        return {**given, **inner, "vllm_xargs": None}

    @model_validator(mode="after")
    def _whole(self) -> SamplingFields:
        for name in _SAME:
            if None not in (
                getattr(self.denoising, name),
                getattr(self, f"diffusion_{name}"),
            ):
                raise refuse(f"diffusion_{name}", f"given twice; drop it or diffusion.{name}")
        if self.diffusion_pinned is not None and self.diffusion_seed_canvas is None:
            raise refuse("diffusion_pinned", "needs diffusion_seed_canvas; give both")
        if self.logit_bias is not None:
            for key in self.logit_bias:
                if not (_ID.fullmatch(key) and len(key) <= LONGEST_ID):
                    raise refuse("logit_bias", f"{key[:100]!r} is not a token id; see /tokenize")
        return self

    @property
    def denoising(self) -> Diffusion:
        """The `diffusion` object, or one of defaults."""
        return self.diffusion or Diffusion()

    def constraint(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that constrain the answer as a whole."""
        asked = {name: getattr(self, f"guided_{short}") for name, short in VLLM_NAMES.items()}
        asked["structure"] = self.denoising.structure
        return {name: value for name, value in asked.items() if value is not None}

    def values(self) -> dict[str, Any]:
        """Fields of `SamplingParams` under their own names; None if the request has none.

        A subclass overrides this if a field of its own has another meaning, or another name.
        """
        found = {
            name: getattr(source, name)
            for source in (self, self.denoising)
            for name in _PARAMS
            if name in type(source).model_fields
        }
        for name in _SAME:
            if found[name] is None:
                found[name] = getattr(self, f"diffusion_{name}")
        return found | self.constraint()

    def params(self, limits: ServerLimits, **more: Any) -> SamplingParams:
        """How to draw, within the server's limits.

        Args:
            more: fields of `SamplingParams` that the request says otherwise.

        Raises:
            InvalidRequest: a value that cannot be honoured; the message names the field.
            Refusal: a limit is passed.
        """
        values = self.values()
        check_limit("max_tokens", values["max_tokens"], limits.max_tokens)
        check_limit("max_steps", values["max_steps"], limits.max_steps)
        check_limit("race", values["race"], limits.n)
        check_restarts(
            values["restart_after"], values["tries"], values["quality"] is not None,
            values["max_steps"], limits,
        )  # fmt: skip
        for name in CONSTRAINT_FIELDS:
            if values.get(name) is not None:
                check_schema(values[name], name, limits)
        values["max_tokens"] = values["max_tokens"] or limits.max_tokens
        return SamplingParams(**values | more)

    def canvas(self, facts: ModelFacts, params: SamplingParams) -> CanvasControl | None:
        """The control of the first canvas; None: it is free.

        Raises:
            InvalidRequest: a field does not fit.
        """
        seeds = self.diffusion_seed_canvas
        read_only = bool(self.diffusion_read_only)
        strength = self.denoising.strength
        if seeds is None:
            if strength is not None:
                raise bad_field("strength", "needs a prediction or diffusion_seed_canvas")
            return CanvasControl(read_only=True) if read_only else None
        width = canvas_width(params, facts.canvas)
        if len(seeds) > width:
            why = f"has {len(seeds)} ids, but the canvas is {width} wide"
            raise bad_field("diffusion_seed_canvas", why)
        pinned = tuple(self.diffusion_pinned or ())
        if strength is None:
            # One step reads the very canvas that was given, as vLLM does. A longer run redraws
            # all but the pins (clients send noise there), and keeps half of a seed without pins.
            once = params.max_steps == 1 or (read_only and params.max_steps is None)
            strength = 0.0 if once else 1.0 if pinned else PREDICTION_STRENGTH
        try:
            return CanvasControl(
                ids=tuple(seeds), pinned=pinned, read_only=read_only, strength=strength
            )
        except InvalidRequest as error:
            raise bad_field("diffusion_pinned", f"cannot be kept: {error}") from error


class StreamFields(SamplingFields):
    """The same, of an answer that can be sent as events."""

    stream: bool | None = None

    @model_validator(mode="after")
    def _streamed(self) -> StreamFields:
        check_drafts(self.denoising, self.stream)
        return self

    @property
    def drafts(self) -> bool:
        """Whether frames are wanted."""
        return self.denoising.stream != "off"


Prediction.model_rebuild()
