"""Requests to fill in the middle, in Mercury's (and Mistral's) form and in llama.cpp's.

Knows their fields and how they become `SamplingFields`. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dgemma.params import bounds
from dgemma.server.accounting import DiffusionUsage, Timings
from dgemma.server.errors import at_path
from dgemma.server.request_body import Body
from dgemma.server.sampling_fields import (
    Diffusion,
    OneAnswer,
    Penalty,
    RepetitionPenalty,
    SamplingFields,
    Stops,
    StreamFields,
    TopK,
    bounded,
    check_drafts,
)

DEFAULT_TOKENS = 512
"""Mercury's own default; the canvas is the bound if it is narrower."""
MOST_EXTRAS = 256
SAMPLERS = ("top_k", "top_p", "min_p", "temperature")
Sampler = Literal["top_k", "top_p", "min_p", "temperature",
                  "infill", "penalties", "dry", "typ_p", "top_n_sigma", "xtc"]  # fmt: skip
"""llama.cpp's samplers; those of the second line do nothing here, since their own parameters are
refused."""


class FimRequest(StreamFields):
    """Mercury's form.

    Attributes:
        prompt, suffix: the texts before and after the one that is written.
        max_tokens: most tokens of it (512, or as many as fit on a canvas).
    """

    model: str | None = None
    prompt: str
    suffix: str = ""
    n: OneAnswer = None


class Extra(Body):
    """A file that is shown for reference; `time`, when an editor saw it, changes nothing."""

    filename: str = ""
    text: str
    time: Any = None


class InfillRequest(Body):
    """llama.cpp's form.

    Attributes:
        input_prefix, input_suffix: the texts before and after.
        input_extra: files that are shown for reference.
        prompt: text that follows the prefix, as a rule the line up to the cursor.
        n_predict: most tokens; -1: as many as fit on a canvas; 0: nothing is done.
        n_indent: the text ends before a line that is indented by fewer blanks.
        samplers: which of top_k, top_p, min_p and temperature are used; None: all.
        t_max_prompt_ms, t_max_predict_ms: when both together are over, the text ends with what can
            no longer change; of one canvas that is nothing.
        response_fields: the only fields of the reply; a path such as "timings/predicted_ms"
            becomes a field of that very name.
        cache_prompt, id_slot: for the prompt cache; they cannot change a result.
    """

    HINTS: ClassVar[Mapping[str, str]] = {
        **Diffusion.INSIDE,
        "diffusing": "belongs to /v1/chat/completions; use diffusion.stream",
        "logit_bias": "send logit_bias to /v1/fim/completions",
        "n_probs": "probabilities are in /v1/canvas",
    }
    NAMES: ClassVar[Mapping[str, Sequence[str]]] = {
        **Diffusion.PATHS, "max_tokens": ("n_predict",), "prompt": ("input_prefix",),
    }  # fmt: skip

    model: str | None = None
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] = Field(default_factory=list, max_length=MOST_EXTRAS)
    prompt: str = ""
    n_predict: int | None = Field(default=None, ge=-1, le=bounds("max_tokens")[1])
    n_indent: int = Field(default=0, ge=0)
    stop: Stops | None = None
    stream: bool = False
    seed: int | None = Field(default=None, ge=-1, le=bounds("seed")[1])
    temperature: float | None = bounded("temperature")
    top_k: TopK = None
    top_p: float | None = bounded("top_p")
    min_p: float | None = bounded("min_p")
    samplers: list[Sampler] | None = Field(default=None, max_length=MOST_EXTRAS)
    repeat_penalty: RepetitionPenalty = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    t_max_prompt_ms: int | None = Field(default=None, ge=0)
    t_max_predict_ms: int | None = Field(default=None, ge=0)
    response_fields: list[str] | None = Field(default=None, max_length=MOST_EXTRAS)
    cache_prompt: bool | None = None
    id_slot: int | None = None
    diffusion: Diffusion | None = None

    @model_validator(mode="after")
    def _streamed(self) -> InfillRequest:
        check_drafts(self.diffusion or Diffusion(), self.stream)
        return self

    def sampling(self) -> SamplingFields:
        """The same in the words of the other routes."""
        used = SAMPLERS if self.samplers is None else self.samplers
        found = {name: getattr(self, name) for name in SAMPLERS if name in used}
        return SamplingFields(
            max_tokens=self.n_predict if (self.n_predict or 0) > 0 else None,
            seed=None if self.seed == -1 else self.seed, diffusion=self.diffusion, **found,
        )  # fmt: skip

    @property
    def limit_s(self) -> float | None:
        """Seconds that the whole may take."""
        given = (self.t_max_prompt_ms or 0) + (self.t_max_predict_ms or 0)
        return given / 1000 if given else None


def reference(extras: Sequence[Extra]) -> str | None:
    """Files as a part of the user's message."""
    shown = [f"File: {one.filename}\n{one.text}" if one.filename else one.text for one in extras]
    return "\n\n".join(shown) or None


def picked(body: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Only these fields of a reply; those of objects within it under their whole path."""
    if fields is None:
        return dict(body)
    found = {path: at_path(body, path, "/") for path in fields}
    return {path: value for path, value in found.items() if value is not None}


class InfillTimings(Timings):
    """llama.cpp's names for some of the times, beside ours."""

    prompt_n: int
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class InfillReply(BaseModel):
    """llama.cpp's reply. With `response_fields` it holds those alone, under their paths."""

    model_config = ConfigDict(extra="allow")

    index: Literal[0] = 0
    content: str = ""
    tokens: list[int] = []
    model: str = ""
    stop: bool = True
    stop_type: Literal["eos", "word", "limit"] = Field(
        default="eos",
        description="limit: n_predict 0, or the time was over before all was written",
    )
    stopping_word: str = ""
    truncated: bool = False
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    seed: int | None = None
    timings: InfillTimings | None = None
    diffusion_usage: DiffusionUsage | None = None
