"""OpenAI's old form for plain text: the request, with vLLM's and our own fields, and the reply.

Knows the fields and how prompts may be given. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from dgemma.param_rules import MOST_ALTERNATIVES
from dgemma.server.accounting import CostedReply
from dgemma.server.choices import ChoiceFields
from dgemma.server.request_body import at_most, neutral, refuse
from dgemma.server.sampling_fields import MOST_TOKENS, SamplingFields
from dgemma.server.verdict import DiffusionReply


class CompletionRequest(ChoiceFields):
    """A text to be continued; with a suffix: the text between the two."""

    HINTS: ClassVar[Mapping[str, str]] = {
        **SamplingFields.HINTS,
        "messages": "messages belong to /v1/chat/completions",
        "top_logprobs": "top_logprobs belongs to /v1/chat/completions; here logprobs is a number",
    }  # fmt: skip

    prompt: Annotated[
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)],
        at_most(MOST_TOKENS, "texts or ids"),
    ] = Field(description="a text, token ids, or a list of either")
    suffix: str | None = Field(default=None, description="the text after the one that is written")
    best_of: int | None = Field(
        default=None, ge=1, description="make so many and return the n likeliest, the best first"
    )
    logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    echo: Annotated[
        bool | None, neutral(False, why="the prompt is not repeated, nor scored, here")
    ] = None

    @model_validator(mode="after")
    def _completion(self) -> CompletionRequest:
        if self.logprob_token_ids and self.logprobs is None:
            raise refuse("logprob_token_ids", "needs logprobs; give both (0 is enough)")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise refuse("best_of", f"is below n {self.n or 1}; ask for at least as many")
        if self.stream and self.best_of is not None:
            raise refuse("best_of", "cannot be streamed: the best is known at the end; drop one")
        if self.mode != "diffusion":
            for name in ("suffix", "best_of"):
                if getattr(self, name) is not None:
                    raise refuse(name, f"needs mode 'diffusion', not {self.mode!r}; drop one")
        if self.suffix is None:
            return self
        if not isinstance(self.prompt, str):
            raise refuse("suffix", "needs one prompt that is a text")
        for name in ("best_of", "logprobs"):
            if getattr(self, name) is not None:
                raise refuse(name, "cannot be combined with suffix; see /v1/canvas")
        return self

    @property
    def scored(self) -> bool:
        """See `ChoiceFields.scored`."""
        return self.logprobs is not None

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(one, int) for one in given):
            return [[one for one in given if isinstance(one, int)]]
        return [one for one in given if not isinstance(one, int)]


# -- the reply -------------------------------------------------------------------------------------


class TextLogprobs(BaseModel):
    """Log-probabilities at temperature 1, in the old form: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int] = Field(description="characters in front of each token")


class TextChoice(BaseModel):
    """One of n answers."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    diffusion: DiffusionReply | None = None


class TextReply(CostedReply):
    """A plain text that follows a prompt, or comes before a suffix."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
