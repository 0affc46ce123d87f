"""A compiled grammar, and the matcher that walks it: which ids may come next, and how to end soon.

A grammar is bound to a vocabulary, compiled once and walked many times. Each walk has two matchers
of the library: one over the tokens of the vocabulary, for masks, and one over single bytes, which
makes the search for a completion independent of the size of the vocabulary. Knows nothing about
where a grammar came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dgemma.constrain.completion import BYTE_ORDER, BYTES, shortest, symbols_of
from dgemma.constrain.guidance import GrammarAutomaton, Symbols, compiled, first_line
from dgemma.errors import EngineError, InvalidRequest
from dgemma.matcher import PER_STEP, PIECE, Matcher, Search, accept_in_pieces, run_search
from dgemma.text.token_table import Bits, token_table_of
from dgemma.text.tokenizer import Tokenizer

LONGEST = 1 << 15
"""Most bytes of the shortest text of a grammar."""
AHEAD = 4
"""At so many of the first places of a known text its rest is tried as an end."""


class Source(NamedTuple):
    """A grammar before it is compiled.

    Attributes:
        text: in the library's form.
        alphabet: bitset of the ids that may occur, or None.
        words, closing: that a text may have to hold, or ends with; see `completion.shortest`.
    """

    text: str
    alphabet: Bits | None = None
    words: Sequence[str] = ()
    closing: Sequence[str] = ()


class Grammar:
    """A compiled grammar over the ids of one tokenizer.

    Attributes:
        kind: the name of the parameter that it came from, for messages.
        tokenizer, table: whose ids it is over, and their bytes.
        symbols: of these ids.
        ends: ids that are never part of a text; the text ends before them.
        no_ends: bitset of all others.
        alphabet, words, closing: as in `Source`, words as symbols.
        text: a short text of the grammar, as symbols.
    """

    def __init__(
        self, kind: str, source: Source, tokenizer: Tokenizer, end_ids: Iterable[int],
        text: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            text: the grammar's short text if it is known, as symbols.

        Raises:
            InvalidRequest: the source is broken or has no finite text.
            MissingExtra: llguidance is not installed.
        """
        self.kind = kind
        self.tokenizer = tokenizer
        self.table = token_table_of(tokenizer)
        self.symbols = Symbols(self.table)
        self.ends = frozenset(end_ids)
        self.no_ends = self.table.all_but(self.ends)
        self.alphabet = None if source.alphabet is None else source.alphabet & self.no_ends
        self.words = symbols_of(source.words)
        self.closing = symbols_of(source.closing)
        self._source = source.text
        self._roots: tuple[Any, Any] | None = None
        try:
            if text is None:
                first, effort = self.automaton(), 2 * LONGEST
                text = run_search(shortest(first, LONGEST, effort, self.words, self.closing))
        except EngineError as error:
            raise InvalidRequest(f"{kind}: {error}") from error
        if text is None:
            raise InvalidRequest(
                f"{kind}: no text of at most {LONGEST} bytes was found for it; is there a longer "
                "text in it, a recursion without an end, or a length that cannot be reached?"
            )
        self.text = list(text)

    def _copies(self, which: int) -> Any:
        roots = self._roots
        if roots is None:
            roots = self._roots = compiled(self.kind, self._source, self.tokenizer)
        return roots[which].deep_copy()

    def tokens(self) -> Any:
        """The library's matcher over tokens, at the beginning; cheap."""
        return self._copies(0)

    def automaton(self) -> GrammarAutomaton:
        """The walk over bytes, at the beginning; cheap."""
        return GrammarAutomaton(self._copies(1), len(self.table.special_ids))

    def matcher(self) -> GrammarMatcher:
        """A fresh walk from the beginning; cheap."""
        return GrammarMatcher(self)

    def discard(self) -> None:
        """Compile anew: walks share the library's tables, which stay broken after a limit."""
        self._roots = None


class GrammarMatcher:
    """A walk through a grammar; see `Matcher`."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._tokens = grammar.tokens()
        self._ids: list[int] = []
        self._mask: Bits | None = None
        self._automaton = grammar.automaton()  # now: after `discard` it would be compiled first
        self._walked: list[tuple[int, int]] = []  # ids that the automaton has taken, and its steps

    def accept(self, ids: Sequence[int]) -> int:
        """See `Matcher`."""
        taken = []
        for token_id in ids:
            if token_id in self._grammar.ends or not 0 <= token_id < self._grammar.table.size:
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
        if self._grammar.ends.intersection(ids):
            ids = ids[: next(k for k, token_id in enumerate(ids) if token_id in self._grammar.ends)]
        return ids

    def completion(self, room: int) -> Search[list[int] | None]:
        """See `Matcher`."""
        if self.accepting:
            return []
        automaton = yield from self._byte_automaton()
        most, words = 12 * room + 16, self._grammar.words
        path = yield from shortest(automaton, most, words=words, closing=self._grammar.closing)
        self._healthy()
        if path is None:
            return (yield from self._known(room))
        plain = self._plain(path)
        found = min((self._joined(path), plain), key=len)
        yield 1 + len(path) // PER_STEP
        for ids in (found, plain):
            if (yield from self._closes(ids, room)):
                return ids
        return (yield from self._known(room))

    def can_complete(self, room: int) -> Search[bool]:
        """See `Matcher`."""
        if self.accepting or (yield from self._known(room)) is not None:
            return True
        return (yield from self.completion(room)) is not None

    def _known(self, room: int) -> Search[list[int] | None]:
        """What is left of the text that was found at first, if that is an end here.

        A search steps over a count of thousands, at every commit; this has not to look for it.
        """
        gone = sum(self._grammar.symbols.count(token_id) for token_id in self._ids)
        yield 1 + len(self._ids) // PIECE
        for at in (gone, *range(AHEAD)):
            path = self._grammar.text[at:]
            plain = self._plain(path)
            if path and (yield from self._closes(plain, len(plain))):
                found = plain if len(plain) <= room else self._joined(path)
                yield 1 + len(path) // PER_STEP
                return found if (yield from self._closes(found, room)) else None
        return None

    def alphabet(self) -> Bits | None:
        """See `Matcher`."""
        return None if self._grammar.alphabet is None else self._grammar.alphabet.copy()

    def _bits(self) -> Bits:
        if self._mask is None:
            if self._tokens.is_stopped():
                self._healthy()
                self._mask = np.zeros_like(self._grammar.no_ends)
            else:
                found = np.frombuffer(self._tokens.compute_bitmask(), dtype="<i4")
                self._healthy()
                self._mask = found[: len(self._grammar.no_ends)] & self._grammar.no_ends
        return self._mask

    def _healthy(self) -> None:
        if self._tokens.is_error():
            self._grammar.discard()
            raise EngineError(
                f"the grammar became too complex in mid-text "
                f"({first_line(self._tokens.get_error())}); "
                "simplify it: fewer alternatives, shorter bounds"
            )

    def _byte_automaton(self) -> Search[GrammarAutomaton]:
        """The walk over bytes, brought to where this walk is."""
        same = 0
        for (walked, _), token_id in zip(self._walked, self._ids, strict=False):
            if walked != token_id:
                break
            same += 1
        self._automaton.pop(sum(steps for _, steps in self._walked[same:]))
        del self._walked[same:]
        for low in range(same, len(self._ids), PIECE):
            symbols: list[int] = []
            for token_id in self._ids[low : low + PIECE]:
                found = self._grammar.symbols.of(token_id)
                self._walked.append((token_id, len(found)))
                symbols += found
            self._automaton.push(symbols)
            yield 1 + len(symbols) // PER_STEP
        return self._automaton

    def _joined(self, path: Sequence[int]) -> list[int]:
        """The path in as few tokens as the tokenizer makes of it."""
        out: list[int] = []
        text = bytearray()
        for symbol in [*path, BYTES]:  # the last one only ends the text
            if symbol < BYTES:
                text.append(BYTE_ORDER[symbol])
                continue
            while text and 0x80 <= text[0] < 0xC0:  # the rest of a character that was begun
                out.append(self._grammar.table.byte_ids[text.pop(0)])
            ids = self._grammar.tokenizer.encode(text.decode("utf-8", "replace"))
            if b"".join(map(self._grammar.table.table.__getitem__, ids)) != bytes(text):
                ids = [self._grammar.table.byte_ids[byte] for byte in text]
            out += [*ids, self._grammar.table.special_ids[symbol - BYTES]]
            text.clear()
        return out[:-1]

    def _plain(self, path: Sequence[int]) -> list[int]:
        """The path, one id a symbol."""
        return [self._grammar.symbols.ids[symbol] for symbol in path]

    def _closes(self, ids: Sequence[int], room: int) -> Search[bool]:
        if len(ids) > room or not self._grammar.ends.isdisjoint(ids):
            return False
        return (yield from ends_with(self, ids))


def ends_with(matcher: Matcher, ids: Sequence[int]) -> Search[bool]:
    """Whether these ids can come next and the text may end after them; the state is put back."""
    count = yield from accept_in_pieces(matcher, ids)
    good = count == len(ids) and matcher.accepting
    matcher.undo(count)
    return good
