"""OpenAI's n choices: the fields that ask for them, and their reply, as a whole or in chunks.

Knows the common part of the chat API and the old completions API. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from dgemma.compose.drafts import drafts
from dgemma.compose.streams import merge
from dgemma.errors import bad_field
from dgemma.frontend import ModelFacts
from dgemma.params import SamplingParams
from dgemma.server import sse
from dgemma.server.accounting import costs, costs_beside
from dgemma.server.exchange import Exchange
from dgemma.server.frames import FrameWriter, milliseconds, progress
from dgemma.server.pieces import End, Folded, Frame, Piece, Progress, Scores, fold
from dgemma.server.request_body import Body, neutral, refuse
from dgemma.server.sampling_fields import StreamFields
from dgemma.server.verdict import LEAST as LEAST
from dgemma.server.verdict import verdict_reply
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import InvalidToolCall, Request, TextDelta, TokenScore

Decoding = Literal["diffusion", "autoregressive", "exact"]
"""The modes in which an answer is written; see `Request.mode`."""
MODE: Any = Field(
    default="diffusion",
    description="autoregressive: token after token; exact: the same answer in fewer passes",
)


class StreamOptions(Body):
    """Further chunks of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[
        bool | None, neutral(False, why="chunks are not padded against observers")
    ] = None


class ChoiceFields(StreamFields):
    """Fields of a request for choices."""

    model: str | None = None
    n: int | None = Field(default=None, ge=1, description="answers, with seeds seed, seed + 1, ...")
    stream_options: StreamOptions | None = None
    mode: Decoding = MODE

    @model_validator(mode="after")
    def _optioned(self) -> ChoiceFields:
        if self.stream_options and not self.stream:
            raise refuse("stream_options", "needs stream: true")
        if self.mode != "diffusion":
            shown = self.denoising
            drawn = shown.stream in ("tokens", "ids")
            for name, given in (("stream", drawn), ("stream_interval", shown.stream_interval > 1)):
                if given:
                    why = f"shows drafts, and mode {self.mode!r} has none; send stream 'text' alone"
                    raise refuse(f"diffusion.{name}", why)
        return self

    @property
    def scored(self) -> bool:
        """Whether log-probabilities of tokens are asked for."""
        return False

    @property
    def include_usage(self) -> bool:
        """Whether a stream's last chunk has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def requests(
        self, facts: ModelFacts, prompts: Sequence[Sequence[int]], params: SamplingParams, n: int,
        **more: Any,
    ) -> list[Request]:  # fmt: skip
        """The requests to the model, n for each prompt, side by side, with more of their fields.

        Raises:
            InvalidRequest: a field that cannot be honoured.
        """
        if self.denoising.stream_search:
            raise bad_field("diffusion.stream_search", "has no meaning here: nothing is looked for")
        control = self.canvas(facts, params)
        if control is not None and self.mode != "diffusion":
            name = "diffusion_read_only" if self.diffusion_read_only else "ids"
            raise bad_field(name, f"needs a canvas, and mode {self.mode!r} has none; leave it out")
        frames = self.drafts and self.mode == "diffusion"
        return drafts(
            prompts, params, n, frames=frames, status=self.drafts, canvas=control, mode=self.mode,
            edits=self.denoising.canvas_edits(),
            alternatives=self.denoising.stream_alternatives if frames else 0, **more,
        )  # fmt: skip


A = TypeVar("A", bound=ChoiceFields)


class Choices(ABC, Generic[A]):
    """The reply of a request for choices; see `dgemma.server.exchange.Reply`.

    Attributes:
        PREFIX: of the reply's id.
        KIND, CHUNK: the `object` of a reply and of a chunk.
    """

    PREFIX: ClassVar[str]
    KIND: ClassVar[str]
    CHUNK: ClassVar[str]

    def __init__(
        self, exchange: Exchange, sources: list[AsyncGenerator[Piece, None]], asked: A
    ) -> None:
        """`sources` are the pieces of each choice; every `asked.n` of them share a prompt."""
        self._exchange = exchange
        self._sources = sources
        self._asked = asked
        self._share = asked.n or 1
        self._usage: dict[str, Any] = {"usage": None} if asked.include_usage else {}
        self._frames = FrameWriter(asked.denoising, self.tokenizer)
        self._head = head(self.PREFIX, exchange.service.name)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._exchange.service.facts.tokenizer

    @abstractmethod
    def choice(self, number: int, folded: Folded) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def chunk(
        self, number: int, content: str | None = None, *,
        logprobs: dict[str, Any] | None = None, reason: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A part of a choice."""

    @abstractmethod
    def logprobs(self, scores: Sequence[TokenScore], first: int = 0) -> dict[str, Any] | None:
        """Log-probabilities of a choice's tokens from one on, if they are asked for."""

    async def whole(self) -> dict[str, Any]:
        """The plain reply."""
        return self.folded(await asyncio.gather(*map(fold, self._sources)))

    def folded(self, choices: Sequence[Folded]) -> dict[str, Any]:
        """The plain reply from choices that are done."""
        shown = [
            self.choice(number, one) | self._opinion(one.ended)
            for number, one in enumerate(choices)
        ]
        return self._head | {"object": self.KIND, "choices": shown} | self._costs(choices)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of a stream, without its last line."""
        head = self._head | {"object": self.CHUNK} | self._usage
        source = merge(self._sources)
        folded = [Folded() for _ in self._sources]
        try:
            for choice in self.opening():
                yield sse.event(head | {"choices": [choice]})
            async for number, piece in source:
                folded[number].add(piece)
                for choice, beside in self.parts(number, piece, folded[number]):
                    yield sse.event(head | {"choices": [choice]} | beside)
            spent = self._costs(folded)
            if self._usage:
                yield sse.event(head | {"choices": []} | spent)
        finally:
            await source.aclose()

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks that come before any piece."""
        yield from ()

    def parts(
        self, number: int, piece: Piece, so_far: Folded
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The chunks of one piece: a choice, and the fields beside the choices."""
        if isinstance(piece, TextDelta):
            yield self.chunk(number, piece.text), when(so_far)
        elif isinstance(piece, Frame):
            yield self.chunk(number), self._frames.draft(piece)
        elif isinstance(piece, Progress):
            yield self.chunk(number), {"diffusion": progress(piece, each=self._asked.scored)}
        elif isinstance(piece, Scores):
            first = len(so_far.scores) - len(piece.scores)
            yield self.chunk(number, logprobs=self.logprobs(so_far.scores, first)), {}
        elif isinstance(piece, End):
            ended = self.chunk(number, reason=finish_reason(so_far))
            yield ended | self._opinion(piece), self.last(piece)

    def _opinion(self, end: End) -> dict[str, Any]:
        """The fields of a choice, whole or the last chunk of one, that OpenAI does not have."""
        found = end.output.verdict
        if found is None:
            return {}
        return {"diffusion": {"verdict": verdict_reply(found, each=self._asked.scored)}}

    def last(self, end: End) -> dict[str, Any]:
        """The fields beside a choice's last chunk."""
        return costs_beside([end])

    def _costs(self, folded: Sequence[Folded]) -> dict[str, Any]:
        ends = [one.ended for one in folded]
        self._exchange.count(ends, self._share)
        return costs(ends, self._share)


def head(prefix: str, model: str) -> dict[str, Any]:
    """The beginning of a reply and of each of its chunks."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}


class InvalidCall(BaseModel):
    """What the model wrote as a tool call, but cannot be run."""

    name: str | None = Field(description="of the tool, if it can be read")
    text: str = Field(description="as the model wrote it, without the markers around it")
    error: str


def invalid_tool_call(call: InvalidToolCall) -> dict[str, Any]:
    """The same in a reply."""
    return {"name": call.name, "text": call.text, "error": call.error}


def when(so_far: Folded) -> dict[str, Any]:
    """The time of a delta, in the modes that write token after token."""
    return {} if so_far.t_ms is None else {"t_ms": milliseconds(so_far.t_ms)}


def finish_reason(folded: Folded) -> str:
    """The engine's reason in OpenAI's words."""
    if folded.ended.output.finish_reason == "length":
        return "length"
    return "tool_calls" if folded.calls else "stop"
