"""From a model's ids to its thought, its tool calls, and the text of its answer.

Works on ids, so a look-alike of a marker that is spelt out in ordinary tokens stays text.
Source: the Gemma 4 chat template.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from dgemma.errors import TokenizerError
from dgemma.text.calls import NotACall
from dgemma.text.lenient_calls import called_name, read_call
from dgemma.text.tokenizer import Detokenizer, Tokenizer
from dgemma.types import (
    Delta,
    Field,
    InvalidToolCall,
    InvalidToolCallDelta,
    TextDelta,
    ThoughtDelta,
    ToolCall,
    ToolCallDelta,
)

CHANNEL_HEAD = "thought\n"
"""The beginning of a thought channel."""
BETWEEN_THOUGHTS = "\n"
"""The separator between the texts of two thought channels."""


@dataclass(frozen=True, slots=True)
class MarkerIds:
    """Ids of the markers in a model's answer.

    Attributes:
        channel_open, channel_close: around a thought.
        call_open, call_close: around a tool call.
        quote: around a string within a call.
        ends: after any of these nothing counts: `<turn|>`, `<|tool_response>` and EOS.
    """

    channel_open: int
    channel_close: int
    call_open: int
    call_close: int
    quote: int
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> MarkerIds:
        """The markers of a tokenizer.

        Raises:
            TokenizerError: one is missing.
        """

        def id_of(name: str) -> int:
            token_id = tokenizer.id_of(name)
            if token_id is None or token_id not in tokenizer.special_ids:
                raise TokenizerError(f"no control token {name}; use a Gemma 4 tokenizer")
            return token_id

        return cls(
            channel_open=id_of("<|channel>"),
            channel_close=id_of("<channel|>"),
            call_open=id_of("<|tool_call>"),
            call_close=id_of("<tool_call|>"),
            quote=id_of('<|"|>'),
            ends=frozenset((id_of("<turn|>"), id_of("<|tool_response>"), tokenizer.eos_id)),
        )


def thought_is_open(markers: MarkerIds, ids: Sequence[int]) -> bool:
    """Whether a prompt ends within a thought channel."""
    for token_id in reversed(ids):
        if token_id in (markers.channel_open, markers.channel_close) or token_id in markers.ends:
            return token_id == markers.channel_open
    return False


NO_MARKERS = MarkerIds(-1, -1, -1, -1, -1, frozenset())


class StreamParser:
    """Parses ids as they come.

    It holds back text that may still change: the bytes of an unfinished character, the name of a
    channel, the newline before a thought's end, and a call until it is closed. A thought ends at
    its marker, or at the beginning of a call; a call also ends with the answer.

    Attributes:
        fields: of each id so far, in order, the field that it belongs to; "": a marker, or an id
            after the end. Ids of a call come when it is closed.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, chat: bool = True, thought_open: bool = False,
        tools: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            chat: False: all ids are text; control tokens are dropped, and none ends the answer.
            thought_open: the prompt ended within a thought, see `thought_is_open`.
            tools: names of the tools that may be called; None: any.
        """
        self._markers = MarkerIds.of(tokenizer) if chat else NO_MARKERS
        self._special = tokenizer.special_ids if chat else frozenset[int]()
        self._tokenizer = tokenizer
        self._letters = Detokenizer(tokenizer)
        self._state: Literal["text", "thinking", "tool_call", "end"] = "text"
        self._head: str | None = None  # the channel's name as far as it came; None when it is over
        self._newlines = 0  # held back from the thought
        self._thoughts = 0  # channels so far that held a text
        self._in_channel = False  # this channel has given text
        self._call: list[int] = []
        self._calls = 0  # that are over
        self._invalid = 0  # that could not be read, or were not offered
        self._tools = tools
        self.fields: list[Field] = []
        if thought_open:
            self._state = "thinking"

    def copy(self) -> StreamParser:
        """Another parser that goes on from here; its `fields` are those of its own ids."""
        other = copy.copy(self)
        other._letters, other._call, other.fields = self._letters.copy(), [*self._call], []
        return other

    def push(self, ids: Sequence[int]) -> list[Delta]:
        """Read these ids and return the deltas, neighbours of one field joined.

        Nothing counts after the first end id.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        out: list[Delta] = []
        start = 0
        for k, token_id in enumerate(ids):
            if self._state == "end":
                self.fields += [""] * (len(ids) - k)
                return _joined(out)
            if token_id in self._special:
                self._ordinary(ids[start:k], out)
                self._control(token_id, out)
                start = k + 1
        if self._state != "end":
            self._ordinary(ids[start:], out)
        return _joined(out)

    def draft(self, ids: Sequence[int]) -> list[Delta]:
        """The deltas of more ids and of the text that is held back, but not of an unfinished call.

        Changes nothing, and takes as long as these ids alone.
        """
        other = self.copy()
        out = other.push(ids)
        if other._state != "tool_call":
            other._flush(out)
        return _joined(out)

    def finish(self) -> list[Delta]:
        """End the answer, and return the deltas that were held back."""
        out: list[Delta] = []
        self._end(out)
        return _joined(out)

    def _control(self, token_id: int, out: list[Delta]) -> None:
        markers = self._markers
        if self._state == "tool_call":
            if token_id == markers.quote:
                self._call.append(token_id)
                return
            self._close_call(out, closed=token_id == markers.call_close)
            if token_id == markers.call_close:
                return
        if token_id != markers.call_open:  # a call is unknown until it is closed
            self.fields.append("")
        if token_id in markers.ends:
            self._end(out)
        elif token_id == markers.channel_open:
            self._flush(out)
            self._state, self._head, self._newlines = "thinking", "", 0
            self._in_channel = False
        elif token_id == markers.call_open:
            self._flush(out)
            self._state, self._call = "tool_call", []
        elif token_id == markers.channel_close and self._state == "thinking":
            self._flush(out)
            self._state = "text"
        else:  # a control token that means nothing here is dropped
            self._emit(self._letters.flush(), out)

    def _ordinary(self, ids: Sequence[int], out: list[Delta]) -> None:
        if self._state == "tool_call":
            self._tokenizer.decode(ids)  # refuses ids outside the vocabulary
            self._call += ids
        else:
            self.fields += ["text" if self._state == "text" else "thinking"] * len(ids)
            self._emit(self._letters.push(ids), out)

    def _emit(self, text: str, out: list[Delta]) -> None:
        """Add text to the open field."""
        if not text:
            return
        if self._state == "text":
            out.append(TextDelta(text))
            return
        if self._head is not None:
            self._head += text
            if CHANNEL_HEAD.startswith(self._head) and self._head != CHANNEL_HEAD:
                return
            text, self._head = self._head.removeprefix(CHANNEL_HEAD), None
        text = "\n" * self._newlines + text
        kept = text.rstrip("\n")
        self._newlines = len(text) - len(kept)
        if kept:
            if not self._in_channel and self._thoughts:
                kept = BETWEEN_THOUGHTS + kept
            self._thoughts += not self._in_channel
            self._in_channel = True
            out.append(ThoughtDelta(kept))

    def _flush(self, out: list[Delta]) -> None:
        """End the open text: show an unfinished character, drop a thought's last newline."""
        self._emit(self._letters.flush(), out)
        if self._state == "thinking" and self._head is not None:
            head, self._head = self._head, None
            if head != CHANNEL_HEAD.rstrip("\n"):
                self._emit(head, out)

    def _close_call(self, out: list[Delta], *, closed: bool) -> None:
        """End a call, which may turn out not to be one; a marker alone is dropped."""
        markers, tokenizer = self._markers, self._tokenizer
        ids = [markers.call_open, *self._call] + [markers.call_close] * closed
        self.fields += ["" if i in tokenizer.special_ids else "tool_call" for i in ids]
        if self._call:
            call = self._read_call()
            if isinstance(call, ToolCall):
                out.append(ToolCallDelta(self._calls, call))
                self._calls += 1
            else:
                out.append(InvalidToolCallDelta(self._invalid, call))
                self._invalid += 1
        self._state, self._call = "text", []

    def _read_call(self) -> ToolCall | InvalidToolCall:
        pieces: list[list[int]] = [[]]
        for token_id in self._call:
            if token_id == self._markers.quote:
                pieces.append([])
            else:
                pieces[-1].append(token_id)
        cut = [self._tokenizer.decode(piece) for piece in pieces]
        text = self._tokenizer.decode(self._call, control=True)
        try:
            call = read_call(cut)
        except NotACall as error:
            return InvalidToolCall(text=text, error=str(error), name=called_name(cut))
        if self._tools is None or call.name in self._tools:
            return call
        return InvalidToolCall(text=text, error="no such tool was offered", name=call.name)

    def _end(self, out: list[Delta]) -> None:
        if self._state == "tool_call":
            self._close_call(out, closed=False)
        elif self._state != "end":
            self._flush(out)
        self._state = "end"


def _joined(deltas: list[Delta]) -> list[Delta]:
    """The same with neighbours of one text field joined."""
    out: list[Delta] = []
    for delta in deltas:
        last = out[-1] if out else None
        if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + delta.text)
        elif isinstance(delta, ThoughtDelta) and isinstance(last, ThoughtDelta):
            out[-1] = ThoughtDelta(last.text + delta.text)
        else:
            out.append(delta)
    return out
