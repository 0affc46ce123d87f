"""Matchers that wrap another: one that lets a thought come first, and one that bars words.

Knows nothing about grammar libraries, canvases or models.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from dgemma.constrain.completion import shortest
from dgemma.constrain.guidance import Symbols
from dgemma.constrain.matcher import ends_with
from dgemma.errors import InvalidRequest
from dgemma.matcher import MASK_STEPS, Matcher, Search, run_search
from dgemma.request_parts import ThoughtIds
from dgemma.text.token_table import WORD, Bits, token_table_of
from dgemma.text.tokenizer import Tokenizer


class ThoughtPrefixMatcher:
    """A free thought, then what another matcher allows.

    At the very start either the thought's opening marker or a text of the inner matcher may come.
    Within the thought every id but the end ids is allowed until the closing marker.
    """

    def __init__(
        self,
        inner: Matcher,
        thought: ThoughtIds,
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
    ) -> None:
        self._inner = inner
        self._thought = thought
        self._table = token_table_of(tokenizer)
        self._ends = frozenset(end_ids)
        self._free = self._table.all_but(self._ends)
        self._before: list[int] = []  # ids up to the end of the thought
        self._count = 0  # ids that the inner matcher took

    @property
    def thinking(self) -> bool:
        """The walk is within the thought."""
        if not self._before:
            return self._thought.is_open
        return self._before[-1] != self._thought.close_id

    @property
    def _at_start(self) -> bool:
        return not (self._before or self._count or self._thought.is_open)

    def accept(self, ids: Sequence[int]) -> int:
        """See `Matcher`."""
        taken = 0
        while taken < len(ids) and (self.thinking or self._opens(ids[taken])):
            if ids[taken] in self._ends or not 0 <= ids[taken] < self._table.size:
                return taken
            self._before.append(ids[taken])
            taken += 1
        count = self._inner.accept(ids[taken:])
        self._count += count
        return taken + count

    def _opens(self, token_id: int) -> bool:
        return self._at_start and token_id == self._thought.open_id

    def undo(self, count: int) -> None:
        """See `Matcher`."""
        inner = min(count, self._count)
        if inner:
            self._inner.undo(inner)
            self._count -= inner
        if count > inner:
            assert count - inner <= len(self._before), "more ids taken back than were taken"
            del self._before[len(self._before) - (count - inner) :]

    def allowed(self) -> Bits:
        """See `Matcher`."""
        if self.thinking:
            return self._free.copy()
        bits = self._inner.allowed()
        if self._at_start:
            bits |= self._table.bits((self._thought.open_id,))
        return bits

    @property
    def accepting(self) -> bool:
        """See `Matcher`."""
        return not self.thinking and self._inner.accepting

    @property
    def finished(self) -> bool:
        """See `Matcher`."""
        return not self.thinking and not self._at_start and self._inner.finished

    def forced(self) -> list[int]:
        """See `Matcher`."""
        return [] if self.thinking or self._at_start else self._inner.forced()

    def completion(self, room: int) -> Search[list[int] | None]:
        """See `Matcher`."""
        if not self.thinking:
            return (yield from self._inner.completion(room))
        rest = (yield from self._inner.completion(room - 1)) if room > 0 else None
        return None if rest is None else [self._thought.close_id, *rest]

    def can_complete(self, room: int) -> Search[bool]:
        """See `Matcher`."""
        room -= self.thinking
        return room >= 0 and (yield from self._inner.can_complete(room))

    def alphabet(self) -> Bits | None:
        """See `Matcher`."""
        return None


class BadWordsMatcher:
    """Texts of another matcher, or any, in which no barred word occurs as a run of bytes.

    Control tokens have no bytes: a word may not be joined over one either.
    """

    def __init__(
        self,
        inner: Matcher | None,
        words: Sequence[str],
        tokenizer: Tokenizer,
        end_ids: Sequence[int] = (),
    ) -> None:
        """
        Raises:
            InvalidRequest: a word is empty or not Unicode text, or no text of the inner matcher
                can do without them.
        """
        self._inner = inner
        self._words = sorted({_barred(word) for word in words})
        self._table = token_table = token_table_of(tokenizer)
        self._ends = frozenset(end_ids)
        self._whole = token_table.all_but(self._ends)  # ids that bring no word by themselves
        for word in self._words:
            token_table.clear(self._whole, token_table.holding(word))
        longest = max((len(word) for word in self._words), default=1)
        self._keep = longest - 1
        self._tails = [b""]  # the last bytes after each id
        if inner is not None and run_search(self.completion(1 << 14)) is None:
            raise InvalidRequest(
                f"no text of the asked form is free of the barred words {list(words)!r}; "
                "bar fewer words",
                field="bad_words",
            )

    def accept(self, ids: Sequence[int]) -> int:
        """See `Matcher`."""
        tails, at = [], self._tails[-1]
        for token_id in ids:
            if token_id in self._ends or not 0 <= token_id < self._table.size:
                break
            text = at + self._table.table[token_id]
            if any(word in text for word in self._words):
                break
            at = text[len(text) - self._keep :] if len(text) > self._keep else text
            tails.append(at)
        count = len(tails)
        if self._inner is not None:
            count = self._inner.accept(ids[:count])
        self._tails += tails[:count]
        return count

    def undo(self, count: int) -> None:
        """See `Matcher`."""
        assert count < len(self._tails), "more ids taken back than were taken"
        if self._inner is not None:
            self._inner.undo(count)
        del self._tails[len(self._tails) - count :]

    def allowed(self) -> Bits:
        """See `Matcher`."""
        bits = self._whole.copy()
        if self._inner is not None:
            bits &= self._inner.allowed()
        ends = [self._table.starting(rest) for rest in self._rests()]
        if ends:
            self._table.clear(bits, np.concatenate(ends))
        return bits

    def _rests(self) -> set[bytes]:
        """What would complete a word that has been begun, where one token may bring it."""
        words, tail, longest = self._words, self._tails[-1], self._table.longest
        found: set[bytes] = set()
        for size in range(1, len(tail) + 1):
            said = tail[len(tail) - size :]
            at = bisect.bisect_right(words, said)
            while at < len(words) and words[at].startswith(said):
                if len(words[at]) <= size + longest:
                    found.add(words[at][size:])
                at += 1
        return found

    @property
    def accepting(self) -> bool:
        """See `Matcher`."""
        return self._inner is None or self._inner.accepting

    @property
    def finished(self) -> bool:
        """See `Matcher`."""
        return self.accepting and not self.allowed().any()

    def forced(self) -> list[int]:
        """See `Matcher`."""
        if self._inner is None:
            return []
        ids = self._inner.forced()
        count = self.accept(ids)
        self.undo(count)
        return ids[:count]

    def completion(self, room: int) -> Search[list[int] | None]:
        """See `Matcher`."""
        if self.accepting:
            return []
        assert self._inner is not None
        ids = yield from self._inner.completion(room)
        if ids is None or (yield from ends_with(self, ids)):
            return ids
        symbols = Symbols(self._table)
        path = yield from shortest(MatcherAutomaton(self, symbols), room)
        return None if path is None else [symbols.ids[symbol] for symbol in path]

    def can_complete(self, room: int) -> Search[bool]:
        """See `Matcher`."""
        return (yield from self.completion(room)) is not None

    def alphabet(self) -> Bits | None:
        """See `Matcher`."""
        inner = None if self._inner is None else self._inner.alphabet()
        return self._whole.copy() if inner is None else inner & self._whole


def _barred(word: str) -> bytes:
    if not word:
        raise InvalidRequest("a barred word is empty; leave it out", field="bad_words")
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"barred word {word!a} is not Unicode text; send valid text", field="bad_words"
        ) from None


class MatcherAutomaton:
    """A matcher as an automaton over the single bytes and the control tokens."""

    cost = MASK_STEPS

    def __init__(self, matcher: Matcher, symbols: Symbols) -> None:
        self._matcher = matcher
        self._symbols = symbols
        ids = np.asarray(symbols.ids)
        self._word, self._bit = ids // WORD, (ids % WORD).astype(np.uint32)

    def options(self) -> int:
        forced = self._matcher.forced()
        if forced:  # then the mask may have this token alone, though its bytes are taken too
            return 1 << self._symbols.of(forced[0])[0]
        bits = self._matcher.allowed().view(np.uint32)
        flags = (bits[self._word] >> self._bit & 1).astype(np.uint8)
        return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")

    def forced(self) -> list[int]:
        ids = self._matcher.forced()
        return [symbol for token_id in ids for symbol in self._symbols.of(token_id)]

    def push(self, symbols: Sequence[int]) -> None:
        count = self._matcher.accept([self._symbols.ids[symbol] for symbol in symbols])
        assert count == len(symbols), "an allowed id was not taken"

    def pop(self, count: int) -> None:
        self._matcher.undo(count)

    @property
    def accepting(self) -> bool:
        return self._matcher.accepting
