"""The completion of a text: a short path through an automaton to a state where the text may end.

Works on symbols: the 256 bytes in an order that puts `}` before `,` and digits before letters, and
above them control tokens; the higher, the more it is preferred. Paths are tried one after another:
one takes the preferred symbol among those that it has taken the fewest times in such a state, one
looks a step ahead for a state that it has not been to and tries usual ends such as a fence and the
words of the grammar, one always takes the preferred symbol, and the rest draw at random (the same
draws every time). The shortest path is kept. A state is known by what may come next there, so a
count of characters is not seen. If nothing can be chosen, all forced symbols are taken at once,
however many there are. Knows nothing about tokens, JSON or grammars.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from dgemma.matcher import Search

EFFORT = 20_000
"""Most steps in one search."""
RUN = 32
"""Of symbols that are forced in a row, so many cost a step each, and so many of the rest one."""
SHORT = 16
"""A path of at most so many symbols is not improved on."""
EXTRA = 4
"""Random paths that are tried to find a shorter one."""
FIRST = 600
"""Most symbols of the first path, which may go in circles."""
CLOSING = -1
"""The turn before the first: a path of what a text is known to end with."""

_PREFERRED = (
    b"}])\"'`>,:;| \n0123456789nabcdefghijklmopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-/=+*#"
)
_OTHERS = bytes(byte for byte in range(256) if byte not in _PREFERRED + b"\t[({\\")
BYTE_ORDER = (_PREFERRED + _OTHERS + b"\t[({\\")[::-1]
"""All 256 bytes: what opens, what goes on, what closes. Symbol k is the k-th of them."""
RANK = {byte: rank for rank, byte in enumerate(BYTE_ORDER)}
"""The symbol of each byte."""

BYTES = 256
"""The first symbol that is not a byte."""


def _symbols(text: bytes) -> int:
    return sum(1 << RANK[byte] for byte in text)


_MARKS = bytes(byte for byte in BYTE_ORDER[::-1] if byte < 127 and not chr(byte).isalnum())
ENDS = [
    [RANK[byte] for byte in text]
    for text in (start + bytes((mark,)) * 3 for start in (b"", b"\n") for mark in _MARKS)
]
"""What a free text may end with: marks, up to three of a kind, also on a line of their own."""
_FREE = 64
"""With more options than this, letters are as good as one another: it is a free text."""
_ENDERS = _symbols(b'"')
_LETTERS = _symbols(b"abcdefghijklmnopqrstuvwxyz")
_ASCII = _symbols(bytes(range(128)))
_SAMPLES = _symbols(bytes(b for b in range(32, 127) if not chr(b).isalnum()) + b"\n0aA")


class ByteAutomaton(Protocol):
    """A state of a grammar that steps forth and back, symbol by symbol.

    Attributes:
        cost: steps of a `Search` that a step of this automaton takes.
    """

    @property
    def cost(self) -> int: ...

    def options(self) -> int:
        """Bit k: symbol k may come next."""

    def forced(self) -> list[int]:
        """Symbols that must come next, one after another; [] at a choice or an end."""

    def push(self, symbols: list[int]) -> None:
        """Step over symbols that are allowed one after another."""

    def pop(self, count: int) -> None:
        """Take back the last steps."""

    @property
    def accepting(self) -> bool:
        """The text may end here."""


def symbols_of(words: Iterable[str]) -> list[list[int]]:
    """Words as symbols, for `shortest`."""
    return [[RANK[byte] for byte in word.encode("utf-8")] for word in words]


def shortest(
    automaton: ByteAutomaton, most: int, effort: int = EFFORT, words: Sequence[Sequence[int]] = (),
    closing: Sequence[Sequence[int]] = (),
) -> Search[list[int] | None]:  # fmt: skip
    """Search for symbols of a short path to a state where the text may end.

    Args:
        automaton: is where it was when the search ends.
        most: symbols that the path may have.
        effort: steps to spend.
        words: what a text may have to hold though nothing shows it, as symbols.
        closing: what such a text ends with, as symbols: at each choice the first of them after
            which the text may end is taken, else the first that fits. That path is tried first,
            and is not improved on.

    Returns:
        The path, [] if the text may end at once; None if none was found.
    """
    if automaton.accepting:
        return []
    start = automaton.forced()
    if len(start) > most:
        return None
    automaton.push(start)
    best: list[int] | None = [] if automaton.accepting else None
    search, left, turn = _Search(automaton, effort, words, closing), most - len(start), 0
    if closing and best is None:
        best = yield from search.path(left, CLOSING)
        turn = 3 + EXTRA if best is not None else 0
    while best != [] and search.left > 0 and left > 0 and (best is None or turn < 3 + EXTRA):
        path = yield from search.path(min(left, FIRST) if turn == 0 else left, turn)
        if path is not None:
            best, left = path, len(path) - 1
            if len(start) + len(path) <= SHORT:
                break
        turn += 1
    automaton.pop(len(start))
    return None if best is None else start + best


class _Search:
    """Paths from one state, within a budget of steps."""

    def __init__(
        self, automaton: ByteAutomaton, effort: int, words: Sequence[Sequence[int]],
        closing: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        self._automaton = automaton
        self.left = effort
        self._share = effort // 4  # of one path
        self._ends = [*words, *ENDS]
        self._closing = closing
        self._draw = random.Random(0)

    def _spend(self, steps: int) -> int:
        """Take steps from the budget of this search; how many they are of any `Search`."""
        self.left -= steps
        return steps * self._automaton.cost

    def path(self, most: int, turn: int) -> Search[list[int] | None]:
        """One path of at most `most` symbols; the automaton is put back."""
        automaton = self._automaton
        path: list[int] = []
        taken: Counter[tuple[int, int]] = Counter()
        seen: Counter[int] = Counter()
        done = False
        stop = self._share if turn == CLOSING else max(self.left - self._share, 0)
        while len(path) < most and self.left > stop and not done:
            options = automaton.options()
            if not options:
                yield self._spend(1)
                break
            if options & (options - 1) == 0:
                steps = automaton.forced() or [options.bit_length() - 1]
                yield self._spend(min(len(steps), RUN) + len(steps) // RUN)
                if len(path) + len(steps) > most:
                    break
            else:
                steps = yield from self._steps(options, turn, taken, seen)
                yield self._spend(len(steps))
            automaton.push(steps)
            path += steps
            done = automaton.accepting
        automaton.pop(len(path))
        return path if done else None

    def _steps(
        self, options: int, turn: int, taken: Counter[tuple[int, int]], seen: Counter[int]
    ) -> Search[list[int]]:
        """What a path takes at a choice: one symbol, or a word."""
        if turn == CLOSING:
            word, _ = yield from self._word(options, seen, self._closing)
            return [*word] or [options.bit_length() - 1]
        if turn == 1:
            return (yield from self._ahead(options, seen))
        if turn == 2:
            return [_preferred(options).bit_length() - 1]
        if turn > 2 and self._draw.random() < 0.5:
            symbol = self._random(options)
        else:
            symbol = _least(options, taken)
        taken[options, symbol] += 1
        return [symbol]

    def _ahead(self, options: int, seen: Counter[int]) -> Search[list[int]]:
        """The preferred step to the state that was seen the fewest times; an end is best."""
        automaton = self._automaton
        new = not seen[options]
        seen[options] += 1
        tried = options
        word: Sequence[int] = ()
        if options.bit_count() > _FREE and options & _SAMPLES:
            tried &= _SAMPLES | ~((1 << BYTES) - 1)
        if new:
            word, ends = yield from self._word(options, seen, self._ends)
            if ends:
                return [*word]
        preferred = _preferred(options) & tried
        best = -1
        fewest = 1 << 30
        for part in (preferred, tried ^ preferred):
            while part and fewest > 0:
                symbol = part.bit_length() - 1
                part ^= 1 << symbol
                automaton.push([symbol])
                count = -1 if automaton.accepting else seen[automaton.options()]
                automaton.pop(1)
                yield self._spend(1)
                if count < fewest:
                    best, fewest = symbol, count
        return [*word] if word and fewest > 0 else [best]

    def _word(
        self, options: int, seen: Counter[int], words: Sequence[Sequence[int]]
    ) -> Search[tuple[Sequence[int], bool]]:
        """A word after which the text may end, else one that leads to a new state, if any."""
        automaton = self._automaton
        found: Sequence[int] = ()
        for word in words:
            if not options >> word[0] & 1:
                continue
            count = 0
            done = False
            while count < len(word) and not done and automaton.options() >> word[count] & 1:
                automaton.push([word[count]])
                count += 1
                done = automaton.accepting
            if not done and not found and count == len(word) and not seen[automaton.options()]:
                found = word
            automaton.pop(count)
            yield self._spend(count + 1)
            if done:
                return word[:count], True
        return found, False

    def _random(self, options: int) -> int:
        """Any option; among many, a mark as often as all letters together."""
        if options.bit_count() > _FREE and options & _SAMPLES:
            options &= _SAMPLES | ~((1 << BYTES) - 1)
        return self._draw.choice([k for k in range(options.bit_length()) if options >> k & 1])


def _preferred(options: int) -> int:
    """The options that a free text should end with, or go on with; all of them elsewhere."""
    if options.bit_count() <= _FREE:
        return options
    if options >> BYTES:
        return options
    return options & _ENDERS or options & _LETTERS or options & _ASCII or options


def _least(options: int, taken: Counter[tuple[int, int]]) -> int:
    """The preferred option among those taken the fewest times with these options."""
    favourites = _preferred(options)
    symbol = favourites.bit_length() - 1
    fewest = taken[options, symbol]
    for rest in (favourites, options & _ASCII or options):
        while rest and fewest:
            other = rest.bit_length() - 1
            rest ^= 1 << other
            if taken[options, other] < fewest:
                symbol, fewest = other, taken[options, other]
    return symbol
