"""A stream's events as neutral pieces, which every API puts in its own words.

    deltas           the answer as it is committed, in its order, word by word
    Frame, Progress  a draft of the canvas, a status or a commit; on request
    Moment           the time of the deltas after it, in modes without a canvas
    Scores           log-probabilities of text that has been sent; on request
    End              the reason and the cost

The plain reply is the fold of the same pieces. It must not know HTTP.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgemma.errors import EngineError
from dgemma.events import EventStream
from dgemma.frontend import ModelFacts
from dgemma.params import canvas_width
from dgemma.server.errors import cut_off
from dgemma.types import (
    ENTROPY_PER_NAT,
    Delta,
    Event,
    Field,
    InvalidToolCallDelta,
    Output,
    Request,
    TextDelta,
    ThoughtDelta,
    TokenScore,
    ToolCallDelta,
)

_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Frame:
    """A draft of the canvas that is being denoised.

    Attributes:
        event: the engine's.
        text, thinking: of the draft alone, up to its first end id.
        earlier: the text of the canvases before it.
        most_steps: of a canvas.
        plan: fields that say which request of a plan it is, and where on its canvas it writes.
    """

    event: Event
    text: str
    thinking: str
    earlier: str
    most_steps: int = 0
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """The answer's text so far, the draft at its end."""
        return self.earlier + self.text

    @property
    def mean_entropy(self) -> float:
        """Nats a position, as exact as the bytes of a frame are."""
        entropy = self.event.entropy
        return sum(entropy) / len(entropy) / ENTROPY_PER_NAT if entropy else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A request waits, its prompt is encoded, or a canvas was committed, whose text follows.

    Attributes:
        event: the engine's.
        prompt_tokens: the length of the prompt.
        plan: as for a frame.
    """

    event: Event
    prompt_tokens: int
    plan: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """When the deltas after it were committed, see `Event.t_ms`."""

    t_ms: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of the next tokens of the answer's text.

    They follow the text of their commit. With stop strings, which may still cut off committed
    text, all of them come at the end.
    """

    scores: Sequence[TokenScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds from the start to the first frame, the first text and the end; None: never."""

    frame_s: float | None = None
    text_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class End:
    """The last piece.

    Attributes:
        output: the whole output of the model.
        times: of the first text and the end.
        width: positions of a canvas.
    """

    output: Output
    times: Times
    width: int


Piece = Delta | Frame | Progress | Moment | Scores | End


def words(text: str) -> Iterator[str]:
    """A text cut into words, blanks before them; joined they are the text."""
    return (found.group() for found in _WORD.finditer(text))


class PieceReader:
    """One request's stream as pieces."""

    def __init__(
        self, facts: ModelFacts, request: Request, stream: EventStream, *, every: int = 1,
        one_call: bool = False, most_steps: int = 0,
    ) -> None:  # fmt: skip
        """
        Args:
            request: as it was submitted.
            stream: its events.
            every: of so many frames the first is a piece.
            one_call: only the first call becomes a piece.
            most_steps: of a canvas, for frames.
        """
        self._facts = facts
        self._request = request
        self._stream = stream
        self._every = every
        self._one_call = one_call
        self._most_steps = most_steps
        self._earlier = ""  # text of the finished canvases
        self._text = self._thinking = ""  # told of the canvas that runs
        self._fields: list[Field] = []  # of the committed ids
        self._scores: list[TokenScore] = []
        self._scored = 0  # how many of those are sent, or not of the text
        self._began = time.perf_counter()

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt."""
        return len(self._request.token_ids)

    def close(self) -> None:
        """End the request if it still runs."""
        self._stream.close()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces; closing this, or cancelling its task, ends the request.

        Raises:
            EngineError, Refusal: the request failed, or was ended by the server.
        """
        frame_s = text_s = None
        try:
            async for event in self._stream:
                now = time.perf_counter() - self._began
                if event.type == "frame":
                    frame_s = now if frame_s is None else frame_s
                    if event.step % self._every == 0:
                        yield self._frame(event)
                    continue
                shown = self._request.frames or self._request.status
                told = shown or event.verdict is not None
                if event.type == "status" or (event.type == "commit" and told):
                    yield Progress(event, self.prompt_tokens)
                if event.output is not None:
                    _check(event.output)
                if event.deltas and self._request.mode != "diffusion":
                    yield Moment(event.t_ms)
                for piece in self._take(event):
                    text_s = now if text_s is None else text_s
                    yield piece
                scores = self._fresh_scores(event)
                if scores:
                    yield Scores(scores)
                if event.output is not None:
                    times = Times(frame_s=frame_s, text_s=text_s, total_s=now)
                    width = 1  # of a token after the other
                    if self._request.mode == "diffusion":
                        width = canvas_width(self._request.params, self._facts.canvas)
                    yield End(event.output, times, width)
        finally:
            self._stream.close()

    def _take(self, event: Event) -> Iterator[Delta]:
        """What a commit or the end adds to the answer, word by word."""
        self._fields += event.fields
        self._scores += event.scores
        if self._request.frames:
            self._text += event.text
            self._thinking += _thinking(event)
            if event.whole:
                self._earlier, self._text, self._thinking = self._earlier + self._text, "", ""
        for delta in event.deltas:
            if isinstance(delta, (TextDelta, ThoughtDelta)):
                yield from map(type(delta), words(delta.text))
            elif not (self._one_call and isinstance(delta, ToolCallDelta) and delta.index):
                yield delta
        if event.output is not None and self._read_only:
            yield from map(TextDelta, words(self._facts.tokenizer.decode(event.output.token_ids)))

    def _fresh_scores(self, event: Event) -> Sequence[TokenScore]:
        """The log-probabilities that may be sent now; all, if nothing was committed."""
        output = event.output
        if output is not None and self._read_only:
            return output.scores
        if output is None and self._request.params.stop:
            return ()
        first, last = self._scored, len(self._fields if output is None else output.token_ids)
        self._scored = last
        known = zip(self._scores[first:last], self._fields[first:last], strict=False)
        return [score for score, name in known if name == "text"]

    @property
    def _read_only(self) -> bool:
        return self._request.canvas is not None and self._request.canvas.read_only

    def _frame(self, event: Event) -> Frame:
        text, thinking = self._text + event.text, self._thinking + _thinking(event)
        return Frame(event, text, thinking, self._earlier, self._most_steps)


def _thinking(event: Event) -> str:
    return "".join(delta.text for delta in event.deltas if isinstance(delta, ThoughtDelta))


def _check(output: Output) -> None:
    """
    Raises:
        EngineError, Refusal: there is no answer.
    """
    if output.finish_reason == "error":
        raise EngineError(output.error or "the request failed without saying why")
    if output.finish_reason == "cancelled":
        raise cut_off()


@dataclass(slots=True)
class Folded:
    """All of a reply at once."""

    text: str = ""
    thinking: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)
    invalid: list[InvalidToolCallDelta] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    t_ms: float | None = None  # of the last delta, where there are moments
    end: End | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        if isinstance(piece, TextDelta):
            self.text += piece.text
        elif isinstance(piece, ThoughtDelta):
            self.thinking += piece.text
        elif isinstance(piece, ToolCallDelta):
            self.calls.append(piece)
        elif isinstance(piece, InvalidToolCallDelta):
            self.invalid.append(piece)
        elif isinstance(piece, Scores):
            self.scores += piece.scores
        elif isinstance(piece, Moment):
            self.t_ms = piece.t_ms
        elif isinstance(piece, End):
            self.end = piece

    @property
    def ended(self) -> End:
        """The last piece, which every reply has."""
        assert self.end is not None
        return self.end


async def fold(pieces: AsyncIterator[Piece]) -> Folded:
    """The plain reply."""
    folded = Folded()
    async for piece in pieces:
        folded.add(piece)
    return folded
