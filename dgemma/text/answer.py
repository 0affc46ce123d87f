"""From committed ids to an answer: text as it comes, thought and calls apart, stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.text.parse import StreamParser
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall


class AnswerReader:
    """Folds the ids of one request into text, thinking and tool calls, up to a stop string.

    Attributes:
        text: the answer so far, without the text that is held back.
        thinking: the thought so far.
        tool_calls: the calls so far.
        stopped_by: the stop string that was met, if any; `text` ends before it.
        kept: how many of the pushed ids belong to the answer (all, unless stopped).
        texts: one for each commit that `should_stop` was shown, until the stream takes it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        chat: bool = False,
        thought_open: bool = False,
        must_call: bool = False,
    ) -> None:
        """
        Args:
            stop: strings that end the answer; the reader looks for them outside of thoughts.
            chat: split thought, calls and text; else all ids are text.
            thought_open: the prompt ended within a thought.
            must_call: a call is required, see `StreamParser`.
        """
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._parser = StreamParser(
            tokenizer, chat=chat, thought_open=thought_open, must_call=must_call
        )
        self._whole = ""  # all text so far, held back or not
        self._ends: list[int] = []  # length of `_whole` after each id
        self.text = ""
        self.thinking = ""
        self.tool_calls: list[ToolCall] = []
        self.stopped_by: str | None = None
        self.kept = 0
        self.texts: deque[str] = deque()

    def draft(self, ids: Sequence[int]) -> str:
        """The text of a canvas that is not committed; changes nothing."""
        return self._tokenizer.decode(ids)

    def should_stop(self, ids: Sequence[int]) -> bool:
        """Read the ids of a commit; True if a stop string ends the answer there."""
        self.texts.append(self.push(ids))
        return self.stopped

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.stopped_by is not None

    def push(self, ids: Sequence[int]) -> str:
        """The answer text that these ids add for certain; nothing after a stop string."""
        if self.stopped:
            return ""
        if self._stop:
            for token_id in ids:
                self._fold(self._parser.push([token_id]))
                self._ends.append(len(self._whole))
        else:
            self._fold(self._parser.push(ids))
        self.kept += len(ids)
        return self._advance(final=False)

    def finish(self) -> str:
        """End the answer, and return the text that was held back."""
        if self.stopped:
            return ""
        self._fold(self._parser.finish())
        return self._advance(final=True)

    def _fold(self, deltas: Sequence[tuple[str, object]]) -> None:
        for field, value in deltas:
            if isinstance(value, ToolCall):
                self.tool_calls.append(value)
            elif field == "thinking":
                self.thinking += str(value)
            else:
                self._whole += str(value)

    def _advance(self, final: bool) -> str:
        """Move `text` forward as far as no stop string can still reach back."""
        start = len(self.text)  # no stop string begins in text that was already returned
        found = first_stop(self._whole, self._stop, start)
        if found is not None:
            end, self.stopped_by = found
            self.kept = sum(1 for length in self._ends if length <= end)
        else:
            end = len(self._whole) - (0 if final else held(self._whole, self._stop))
        added = self._whole[start:end]
        self.text += added
        return added


@dataclass(frozen=True, slots=True)
class Parsed:
    """The answer of a model.

    Attributes:
        thinking: the thought without its channel's name; None if there was none or it is empty.
        tool_calls: in the order of writing.
        text: the answer. A call that cannot be read is in it as it was written, markers included.
    """

    thinking: str | None
    tool_calls: tuple[ToolCall, ...]
    text: str


def parse(
    tokenizer: Tokenizer, ids: Sequence[int], *, thought_open: bool = False,
    must_call: bool = False,
) -> Parsed:  # fmt: skip
    """Parse the ids of a finished answer.

    Args:
        ids: committed ids; those after the first end id are ignored.
        thought_open: the prompt ended within a thought, see `thought_is_open`.
        must_call: a call is required, see `StreamParser`.

    Raises:
        TokenizerError: an id is outside the vocabulary, or a marker is missing from it.
    """
    reader = AnswerReader(tokenizer, chat=True, thought_open=thought_open, must_call=must_call)
    reader.push(ids)
    reader.finish()
    return Parsed(reader.thinking or None, tuple(reader.tool_calls), reader.text)


def first_stop(text: str, stop: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """The position at which a text is cut, and its stop string; None: there is none.

    It is the one that is complete first, of several the longest: then it makes no difference in
    which pieces the text came.

    Args:
        start: none begins before.
    """
    found = [(at + len(s), at, s) for s in stop if (at := text.find(s, start)) >= 0]
    if not found:
        return None
    _, at, which = min(found)
    return at, which


def held(text: str, stop: Sequence[str]) -> int:
    """Length of the longest tail of a text that may be the beginning of a stop string."""
    return max(
        (
            size
            for s in stop
            for size in range(1, min(len(s) - 1, len(text)) + 1)
            if text.endswith(s[:size])
        ),
        default=0,
    )
