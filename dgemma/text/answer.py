"""From committed ids to an answer: text as it comes, thought and calls apart, stop strings."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from dgemma.interfaces import Reader
from dgemma.text.parse import StreamParser
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Delta, TextDelta, ThoughtDelta, ToolCallDelta


class AnswerReader(Reader):
    """Reads the ids of one answer into deltas, and their fold, up to a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        chat: bool = False,
        thought_open: bool = False,
        tools: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            stop: strings that end the answer; the reader looks for them outside of thoughts.
            chat: split thought, calls and text; else all ids are text.
            thought_open: the prompt ended within a thought.
            tools: names of the tools that may be called; None: any.
        """
        super().__init__()
        self._stop = tuple(stop)
        self._parser = StreamParser(tokenizer, chat=chat, thought_open=thought_open, tools=tools)
        self._waiting: list[Delta] = []  # text that may begin a stop string, and all behind it
        self._origin = self._parser, 0  # before any of it: the parser, and the length of `text`
        self._since: list[int] = []  # the ids from there on
        self.fields = self._parser.fields

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.stopped_by is not None

    def push(self, ids: Sequence[int]) -> tuple[Delta, ...]:
        """See `Reader`."""
        if self.stopped:
            return ()
        if self._stop:
            if not self._waiting:
                self._origin, self._since = (self._parser.copy(), len(self.text)), []
            self._since += ids
        self.kept += len(ids)
        self._waiting += self._parser.push(ids)
        return self._told(final=False)

    def finish(self) -> tuple[Delta, ...]:
        """See `Reader`."""
        if self.stopped:
            return ()
        self._waiting += self._parser.finish()
        return self._told(final=True)

    def draft(self, ids: Sequence[int]) -> tuple[Delta, ...]:
        """See `Reader`."""
        if self.stopped:
            return ()
        other = copy.copy(self)
        other._waiting = [*self._waiting, *self._parser.draft(ids)]
        return other._release(final=True)

    def _told(self, final: bool) -> tuple[Delta, ...]:
        """The deltas that can be told now, added to the answer."""
        deltas = self._release(final)
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self.text += delta.text
            elif isinstance(delta, ThoughtDelta):
                self.thinking += delta.text
            elif isinstance(delta, ToolCallDelta):
                self.tool_calls.append(delta.call)
            else:
                self.invalid_tool_calls.append(delta.call)
        if self.stopped:
            self.kept -= self._cut_ids()
        return deltas

    def _cut_ids(self) -> int:
        """How many of the ids so far end behind the end of the text."""
        parser, length = self._origin
        for number, token_id in enumerate(self._since):
            length += len(_text(parser.push([token_id])))
            if length > len(self.text):
                return len(self._since) - number
        return 0

    def _release(self, final: bool) -> tuple[Delta, ...]:
        """The deltas up to where no stop string can still reach back."""
        text = _text(self._waiting)
        free = len(text)
        found = first_stop(text, self._stop)
        if found is not None:
            free, self.stopped_by = found
        elif not final:
            free -= held(text, self._stop)
        out: list[Delta] = []
        for number, delta in enumerate(self._waiting):
            if not isinstance(delta, TextDelta):
                out.append(delta)
                continue
            if free:
                out.append(TextDelta(delta.text[:free]))
            if len(delta.text) > free:
                rest = [TextDelta(delta.text[free:]), *self._waiting[number + 1 :]]
                break
            free -= len(delta.text)
        else:
            rest = []
        self._waiting = [] if self.stopped else rest
        return tuple(out)


def _text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """The position at which a text is cut, and its stop string; None: there is none.

    It is the one that is complete first, of several the longest: then it makes no difference in
    which pieces the text came.
    """
    found = [(at + len(s), at, s) for s in stop if (at := text.find(s)) >= 0]
    if not found:
        return None
    _, at, which = min(found)
    return at, which


def held(text: str, stop: Sequence[str]) -> int:
    """Length of the longest tail of a text that may be the beginning of a stop string."""
    longest = 0
    for s in stop:
        at = text.find(s[0], max(0, len(text) - len(s) + 1))
        while at >= 0 and not s.startswith(text[at:]):
            at = text.find(s[0], at + 1)
        longest = max(longest, len(text) - at) if at >= 0 else longest
    return longest
