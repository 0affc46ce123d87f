"""Requests in OpenAI's old form, for text that is to be gone on with or filled in.

Knows the fields and how prompts may be given. Knows nothing about HTTP or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from dgemma.params import MOST_ALTERNATIVES
from dgemma.server.apis.chat.schema import StreamOptions
from dgemma.server.request_body import neutral, refuse
from dgemma.server.sampling_fields import SamplingFields


class CompletionRequest(SamplingFields):
    """A text to be gone on with; with a suffix: what stands between the two."""

    HINTS: ClassVar[Mapping[str, str]] = {
        **SamplingFields.HINTS,
        "messages": "messages belong to /v1/chat/completions",
        "top_logprobs": "top_logprobs belongs to /v1/chat/completions; here logprobs is a number",
    }  # fmt: skip

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text, token ids, or a list of either"
    )
    suffix: str | None = Field(default=None, description="the text behind what is to be written")
    n: int | None = Field(default=None, ge=1, description="answers, with seeds seed, seed + 1, ...")
    best_of: int | None = Field(
        default=None, ge=1, description="make so many and return the n likeliest, the best first"
    )
    logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    echo: Annotated[
        bool | None, neutral(False, why="the prompt is not repeated, nor scored, here")
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _completion(self) -> CompletionRequest:
        if self.logprob_token_ids and self.logprobs is None:
            raise refuse("logprob_token_ids", "needs logprobs; give both (0 is enough)")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise refuse("best_of", f"is below n {self.n or 1}; ask for at least as many")
        if self.stream and self.best_of is not None:
            raise refuse("best_of", "cannot be streamed: the best is known at the end; drop one")
        if not self.stream:
            if self.stream_options:
                raise refuse("stream_options", "needs stream: true; give both")
            if self.drafts:
                raise refuse("diffusion.stream", "needs stream: true; give both")
        if self.shown.stream_interval > 1 and not self.drafts:
            raise refuse("diffusion.stream_interval", "needs diffusion.stream")
        if self.suffix is not None:
            self._infill()
        return self

    def _infill(self) -> None:
        """
        Raises:
            PydanticCustomError: what cannot be, where a suffix is given.
        """
        if not isinstance(self.prompt, str):
            raise refuse("suffix", "needs one prompt that is a text")
        for name in ("best_of", "logprobs"):
            if getattr(self, name) is not None:
                raise refuse(name, "cannot be combined with suffix; see /v1/canvas")

    @property
    def drafts(self) -> bool:
        """Whether frames are wanted."""
        return self.shown.stream != "off"

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(one, int) for one in given):
            return [[one for one in given if isinstance(one, int)]]
        return [one for one in given if not isinstance(one, int)]
