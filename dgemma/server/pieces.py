"""A stream's events as neutral pieces, which every API puts in its own words.

    Text, Thought, Call  committed, in the order in which they were written
    Frame, Progress      a draft of the canvas, a status or a commit; on request
    Scores               log-probabilities of text that has been sent; on request
    End                  the reason and the cost

The plain reply is the fold of the same pieces. Ids separate a thought, a call and the answer, so
none is ever in another's field, even if one canvas holds all three. Text that a stop string may
still cut is held back by the stream's own reader, and here.
Knows markers and fields. Knows nothing about HTTP.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from dgemma.errors import EngineError
from dgemma.frontend import ModelFacts, TextStream
from dgemma.params import canvas_width
from dgemma.server.errors import Refusal
from dgemma.text.answer import Parsed, parse
from dgemma.text.parse import Field, MarkerIds, StreamParser, thought_is_open
from dgemma.types import ENTROPY_PER_NAT, Event, Output, Request, TokenScore, ToolCall

_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Text:
    """A word of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A word of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call, whole; `index` counts from 0."""

    index: int
    id: str
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Frame:
    """A draft of the canvas that is being denoised.

    Attributes:
        event: the engine's.
        text, thinking: of the draft alone, up to its first end id.
        whole: the answer's text so far, the draft at its end.
        most_steps: of a canvas.
        plan: fields that say which request of a plan it is, and where on its canvas it writes.
    """

    event: Event
    text: str
    thinking: str
    whole: str
    most_steps: int = 0
    plan: Mapping[str, Any] = field(default_factory=dict)

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
        thought_tokens: the output's tokens that are in thoughts.
    """

    output: Output
    times: Times
    width: int
    thought_tokens: int


Piece = Text | Thought | Call | Frame | Progress | Scores | End


def words(text: str) -> Iterator[str]:
    """A text cut into words, blanks before them; joined they are the text."""
    return (found.group() for found in _WORD.finditer(text))


@dataclass(slots=True)
class _Held:
    """Deltas of the parser that are not sent yet, in order.

    Text goes out only as far as the stream's own reader has let it go.
    """

    one_call: bool
    waiting: list[tuple[str, str | ToolCall]] = field(default_factory=list)
    free: int = 0  # characters of text that may be sent
    calls: int = 0

    def release(self) -> Iterator[Piece]:
        """The pieces that may be sent now."""
        while self.waiting:
            kind, value = self.waiting[0]
            if isinstance(value, ToolCall):
                if not (self.one_call and self.calls):
                    yield Call(self.calls, f"call_{secrets.token_hex(12)}", value)
                self.calls += 1
            elif kind == "thinking":
                yield from map(Thought, words(value))
            else:
                sent, rest = value[: self.free], value[self.free :]
                yield from map(Text, words(sent))
                self.free -= len(sent)
                if rest:
                    self.waiting[0] = (kind, rest)
                    return
            self.waiting.pop(0)

    def drop_text(self) -> None:
        """Forget text that a stop string has cut off."""
        self.waiting = [one for one in self.waiting if one[0] != "text"]


class PieceReader:
    """One request's stream as pieces."""

    def __init__(
        self, facts: ModelFacts, request: Request, stream: TextStream, *, chat: bool,
        every: int = 1, must_call: bool = False, one_call: bool = False, most_steps: int = 0,
    ) -> None:  # fmt: skip
        """
        Args:
            request: as it was submitted.
            stream: its events.
            chat: split thought, calls and text; else all is text.
            every: of so many frames the first is a piece.
            must_call: a call is required; one that is cut off does not become text.
            one_call: only the first call becomes a piece.
            most_steps: of a canvas, for frames.
        """
        self._every = every
        self._facts = facts
        self._request = request
        self._stream = stream
        self._chat = chat
        self._open = chat and thought_is_open(MarkerIds.of(facts.tokenizer), request.token_ids)
        self._must_call = must_call
        self._parser = StreamParser(
            facts.tokenizer, chat=chat, thought_open=self._open, must_call=must_call
        )
        self._held = _Held(one_call)
        self._most_steps = most_steps
        self._committed: list[int] = []
        self._begun = 0  # how many of them belong to earlier canvases
        self._scores: list[TokenScore] = []  # of all of them
        self._scored = 0  # how many of those are sent, or not of the text
        self._began = time.perf_counter()

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
                if event.type == "status" or (event.type == "commit" and self._request.frames):
                    yield Progress(event, len(self._request.token_ids))
                if event.type == "status":
                    continue
                for piece in self._take(event):
                    text_s = now if text_s is None else text_s
                    yield piece
                scores = self._fresh_scores(event)
                if scores:
                    yield Scores(scores)
                if event.output is not None:
                    yield self._end(event.output, Times(
                        frame_s=frame_s, text_s=text_s, total_s=now
                    ))  # fmt: skip
        finally:
            self._stream.close()

    def _take(self, event: Event) -> Iterator[Piece]:
        """The pieces of a commit or of the end."""
        held, output = self._held, event.output
        if output is not None:
            _check(output)
        self._committed += event.ids
        if event.whole:
            self._begun = len(self._committed)
        held.free += len(event.text)
        held.waiting += self._parser.push(event.ids)
        rest = self._parser.finish() if output is not None else []
        if output is not None and output.stopped_by is None:
            held.waiting += rest
        yield from held.release()
        if output is not None:
            held.drop_text()
            yield from held.release()
        if output is not None and self._read_only:
            yield from map(Text, words(self._facts.tokenizer.decode(output.token_ids)))

    def _fresh_scores(self, event: Event) -> Sequence[TokenScore]:
        """The log-probabilities that may be sent now."""
        self._scores += event.scores
        if event.output is not None:
            return self.scores(event.output, self._scored)
        if not self._scores or self._request.params.stop:
            return ()
        first, known = self._scored, self._parser.fields
        self._scored = len(known)
        return _of_text(self._scores[first:], known[first:])

    @property
    def _read_only(self) -> bool:
        return self._request.canvas is not None and self._request.canvas.read_only

    def _frame(self, event: Event) -> Frame:
        earlier = self._committed[: self._begun]  # the draft holds all of its canvas
        if not self._chat:
            decode = self._facts.tokenizer.decode
            ids = list(takewhile(lambda i: i not in self._facts.end_ids, event.ids))
            text = decode(ids)
            return Frame(event, text, "", decode([*earlier, *ids]), self._most_steps)
        before = self._parse(earlier)
        whole = self._parse([*earlier, *event.ids])
        text = whole.text[len(before.text) :]
        thinking = (whole.thinking or "")[len(before.thinking or "") :]
        return Frame(event, text, thinking, whole.text, self._most_steps)

    def _parse(self, ids: Sequence[int]) -> Parsed:
        return parse(self._facts.tokenizer, ids, thought_open=self._open, must_call=self._must_call)

    def _end(self, output: Output, times: Times) -> End:
        width = canvas_width(self._request.params, self._facts.canvas)
        thoughts = self._parser.fields[: len(output.token_ids)].count("thinking")
        return End(output, times, width, thoughts)

    def scores(self, output: Output, first: int = 0) -> list[TokenScore]:
        """Those of the answer's text, from an output's token on, after the last piece; those of
        every position if nothing was committed."""
        if self._read_only or not output.scores:
            return list(output.scores)
        return _of_text(output.scores[first:], self._parser.fields[first : len(output.token_ids)])


def _of_text(scores: Sequence[TokenScore], fields: Sequence[Field]) -> list[TokenScore]:
    """Those of the answer's text."""
    return [score for score, name in zip(scores, fields, strict=False) if name == "text"]


def _check(output: Output) -> None:
    """
    Raises:
        EngineError, Refusal: there is no answer.
    """
    if output.finish_reason == "error":
        raise EngineError(output.error or "the request failed without saying why")
    if output.finish_reason == "cancelled":
        raise Refusal(
            503, "the request was ended before its answer was done: the server is shutting down; "
            "try again later", code="cancelled",
        )  # fmt: skip


@dataclass(slots=True)
class Folded:
    """All of a reply at once."""

    text: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    end: End | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        if isinstance(piece, Text):
            self.text += piece.text
        elif isinstance(piece, Thought):
            self.thinking += piece.text
        elif isinstance(piece, Call):
            self.calls.append(piece)
        elif isinstance(piece, Scores):
            self.scores += piece.scores
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
