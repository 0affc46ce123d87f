"""A walk through a compiled grammar: which ids may come next, and how the text could soon end.

Knows the matchers that `guidance` makes; knows nothing about where a grammar came from.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dgemma.constrain.completion import BYTE_ORDER, BYTES, shortest
from dgemma.constrain.guidance import GrammarAutomaton, first_line
from dgemma.errors import EngineError
from dgemma.text.token_table import Bits, token_table_of
from dgemma.text.tokenizer import Tokenizer

AHEAD = 4
"""At so many of the first places of a known text its rest is tried as an end."""

_RANK = {byte: rank for rank, byte in enumerate(BYTE_ORDER)}


class GrammarMatcher:
    """A walk through a grammar; see `matchers.Matcher`."""

    def __init__(
        self,
        tokens: Any,
        single: Any,
        tokenizer: Tokenizer,
        no_ends: Bits,
        ends: frozenset[int],
        alphabet: Bits | None,
        words: Sequence[Sequence[int]],
        text: Sequence[int],
        broken: Callable[[], None],
    ) -> None:
        """From `Grammar.matcher`.

        Args:
            tokens: becomes this walk's own.
            single: over single bytes; copied when it is needed.
            tokenizer, no_ends, ends, alphabet, words: as in `Grammar`.
            text: a short text of the grammar, as symbols.
            broken: called before an error of the library is raised.
        """
        self._tokens = tokens
        self._single = single
        self._tokenizer = tokenizer
        self._letters = token_table_of(tokenizer)
        self._no_ends = no_ends
        self._ends = ends
        self._alphabet = alphabet
        self._words = words
        self._text = text
        self._broken = broken
        self._ids: list[int] = []
        self._mask: Bits | None = None
        self._automaton: GrammarAutomaton | None = None
        self._walked: list[tuple[int, int]] = []  # ids that the byte walk has taken, and its steps

    def accept(self, ids: Sequence[int]) -> int:
        """See `Matcher`."""
        taken = []
        for token_id in ids:
            if token_id in self._ends or not 0 <= token_id < self._letters.size:
                break
            taken.append(int(token_id))
        if not taken:
            return 0
        count: int = self._tokens.try_consume_tokens(taken)
        self._healthy()
        self._ids += taken[:count]
        self._mask = None
        return count

    def undo(self, count: int) -> None:
        """See `Matcher`."""
        assert 0 <= count <= len(self._ids), "more ids taken back than were taken"
        if count:
            self._tokens.rollback(count)
            self._healthy()
            del self._ids[len(self._ids) - count :]
            self._mask = None

    def allowed(self) -> Bits:
        """See `Matcher`."""
        return self._bits().copy()

    @property
    def accepting(self) -> bool:
        """See `Matcher`."""
        found: bool = self._tokens.is_accepting()
        return found

    @property
    def finished(self) -> bool:
        """See `Matcher`."""
        return self.accepting and not self._bits().any()

    def forced(self) -> list[int]:
        """See `Matcher`."""
        if self.accepting:
            return []
        ids: list[int] = self._tokens.compute_ff_tokens()
        self._healthy()
        if self._ends.intersection(ids):
            ids = ids[: next(k for k, token_id in enumerate(ids) if token_id in self._ends)]
        return ids

    def completion(self, room: int) -> list[int] | None:
        """See `Matcher`."""
        if self.accepting:
            return []
        automaton = self._byte_automaton()
        path = shortest(automaton, 12 * room + 16, words=self._words)
        self._healthy()
        if path is None:
            return self._known(room)
        plain = self._plain(path)
        found = min((self._joined(path), plain), key=len)
        for ids in (found, plain):
            if self._closes(ids, room):
                return ids
        return self._known(room)

    def can_complete(self, room: int) -> bool:
        """See `Matcher`."""
        return self.accepting or self._known(room) is not None or self.completion(room) is not None

    def _known(self, room: int) -> list[int] | None:
        """What is left of the text that was found at first, if that is an end here.

        A search steps over a count of thousands, at every commit; this has not to look for it.
        """
        gone = sum(len(self._symbols(token_id)) for token_id in self._ids)
        for at in (gone, *range(AHEAD)):
            path = self._text[at:]
            plain = self._plain(path)
            if path and self._closes(plain, len(plain)):
                found = plain if len(plain) <= room else self._joined(path)
                return found if self._closes(found, room) else None
        return None

    def alphabet(self) -> Bits | None:
        """See `Matcher`."""
        return None if self._alphabet is None else self._alphabet.copy()

    def _bits(self) -> Bits:
        if self._mask is None:
            if self._tokens.is_stopped():
                self._healthy()
                self._mask = np.zeros_like(self._no_ends)
            else:
                found = np.frombuffer(self._tokens.compute_bitmask(), dtype="<i4")
                self._healthy()
                self._mask = found[: len(self._no_ends)] & self._no_ends
        return self._mask

    def _healthy(self) -> None:
        if self._tokens.is_error():
            self._broken()
            raise EngineError(
                f"the grammar became too complex in mid-text "
                f"({first_line(self._tokens.get_error())}); "
                "simplify it: fewer alternatives, shorter bounds"
            )

    def _byte_automaton(self) -> GrammarAutomaton:
        """The walk over bytes, brought to where this walk is."""
        if self._automaton is None:
            self._automaton = GrammarAutomaton(
                self._single.deep_copy(), len(self._letters.special_ids)
            )
            self._walked = []
        same = 0
        for (walked, _), token_id in zip(self._walked, self._ids, strict=False):
            if walked != token_id:
                break
            same += 1
        self._automaton.pop(sum(steps for _, steps in self._walked[same:]))
        del self._walked[same:]
        symbols: list[int] = []
        for token_id in self._ids[same:]:
            found = self._symbols(token_id)
            self._walked.append((token_id, len(found)))
            symbols += found
        self._automaton.push_all(symbols)
        return self._automaton

    def _joined(self, path: Sequence[int]) -> list[int]:
        """The way in as few tokens as the tokenizer makes of it."""
        out: list[int] = []
        text = bytearray()
        for symbol in [*path, BYTES]:  # the last one only ends the text
            if symbol < BYTES:
                text.append(BYTE_ORDER[symbol])
                continue
            while text and 0x80 <= text[0] < 0xC0:  # the rest of a character that was begun
                out.append(self._letters.byte_ids[text.pop(0)])
            ids = self._tokenizer.encode(text.decode("utf-8", "replace"))
            if b"".join(map(self._letters.table.__getitem__, ids)) != bytes(text):
                ids = [self._letters.byte_ids[byte] for byte in text]
            out += [*ids, self._letters.special_ids[symbol - BYTES]]
            text.clear()
        return out[:-1]

    def _plain(self, path: Sequence[int]) -> list[int]:
        """The way, one id a symbol."""
        return [self._id_of(symbol) for symbol in path]

    def _id_of(self, symbol: int) -> int:
        if symbol < BYTES:
            return self._letters.byte_ids[BYTE_ORDER[symbol]]
        return self._letters.special_ids[symbol - BYTES]

    def _symbols(self, token_id: int) -> list[int]:
        text = self._letters.table[token_id]
        if not text:
            return [BYTES + bisect.bisect_left(self._letters.special_ids, token_id)]
        return [_RANK[byte] for byte in text]

    def _closes(self, ids: Sequence[int], room: int) -> bool:
        return len(ids) <= room and self._ends.isdisjoint(ids) and self._ends_well(ids)

    def _ends_well(self, ids: Sequence[int]) -> bool:
        count = self.accept(ids)
        good = count == len(ids) and self.accepting
        self.undo(count)
        return good
