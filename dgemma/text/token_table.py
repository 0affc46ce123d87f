"""The tokens of a vocabulary by their bytes, and bitsets of ids.

A bitset is int32 [ceil(V / 32)]: bit j of word w is id 32 w + j, the layout of the masks in the
vocabulary operation. Built once per tokenizer. Knows nothing about grammars or canvases.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dgemma.text.tokenizer import Tokenizer

WORD = 32
"""Ids in one word of a bitset."""
SEPARATOR = b"\xff"
"""A byte that UTF-8 does not have: it follows every token, so no text is found across two."""
MOST_KNOWN = 256
"""Answers of `between` that are kept."""

Bits = NDArray[np.int32]


T = TypeVar("T")


def per_tokenizer(make: Callable[[Tokenizer], T]) -> Callable[[Tokenizer], T]:
    """Keep what is made of a tokenizer for as long as it lives. Any thread may ask for it."""
    kept: WeakKeyDictionary[Tokenizer, T] = WeakKeyDictionary()
    lock = threading.Lock()

    def find(tokenizer: Tokenizer) -> T:
        with lock:
            if tokenizer not in kept:
                kept[tokenizer] = make(tokenizer)
            return kept[tokenizer]

    return find


class TokenTable:
    """Tables of one vocabulary.

    Attributes:
        size: number of ids.
        table: the bytes of every id; b"" for control tokens.
        special_ids: ids of control tokens, sorted.
        text_ids: all other ids, sorted.
        text: the bitset of `text_ids`.
        byte_ids: an id for each of the 256 bytes, an ordinary token if there is one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Most callers use `token_table_of`, which keeps them."""
        self.size = tokenizer.vocab_size
        self.table = [tokenizer.token_bytes(token_id) for token_id in range(self.size)]
        self.special_ids = sorted(tokenizer.special_ids)
        self.text_ids = tuple(i for i, text in enumerate(self.table) if text)
        self.text = self.bits(self.text_ids)
        self._known: dict[tuple[bytes, bytes, int], tuple[int, ...]] = {}
        self.byte_ids = [0] * 256
        for byte in range(256):  # every vocabulary of the family has the token <0xNN>
            token_id = tokenizer.id_of(f"<0x{byte:02X}>")
            assert token_id is not None
            self.byte_ids[byte] = token_id
        for byte in range(128):
            token_id = tokenizer.id_of("\u2581" if byte == 32 else chr(byte))
            if token_id is not None and self.table[token_id] == bytes((byte,)):
                self.byte_ids[byte] = token_id

    def bits(self, ids: Iterable[int]) -> Bits:
        """The bitset of ids."""
        flags = np.zeros(-(-self.size // WORD) * WORD, dtype=np.uint8)
        flags[np.fromiter(ids, dtype=np.int64)] = 1
        return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)

    def all_but(self, ids: Iterable[int]) -> Bits:
        """The bitset of all other ids."""
        bits = self.bits(range(self.size))
        self.clear(bits, np.fromiter(ids, dtype=np.int64))
        return bits

    def ids(self, bits: Bits) -> NDArray[np.int64]:
        """The ids in a bitset, ascending."""
        flags = np.unpackbits(bits.astype("<i4").view(np.uint8), bitorder="little")
        return np.flatnonzero(flags[: self.size])

    def clear(self, bits: Bits, ids: NDArray[np.int64]) -> None:
        """Take ids out of a bitset, in place."""
        masks = (1 << (ids % WORD)).astype(np.uint32)
        np.bitwise_and.at(bits.view(np.uint32), ids // WORD, ~masks)

    def starting(self, prefix: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that start with these bytes."""
        order, texts = self._sorted
        low = bisect.bisect_left(texts, prefix)
        stop = prefix.rstrip(b"\xff")  # the first text past all that start with the prefix
        high = len(texts)
        if stop:
            high = bisect.bisect_left(texts, stop[:-1] + bytes((stop[-1] + 1,)))
        return order[low:high]

    def holding(self, part: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that have these bytes, of valid UTF-8, somewhere.

        With a `SEPARATOR` after the bytes: of the tokens that end with them.
        """
        blob, starts = self._joined
        found: list[int] = []
        at = blob.find(part)
        while at >= 0:
            token_id = bisect.bisect_right(starts, at) - 1
            found.append(token_id)
            at = blob.find(part, starts[token_id + 1]) if token_id + 1 < self.size else -1
        return np.asarray(found, dtype=np.int64)

    def exactly(self, text: bytes) -> tuple[int, ...]:
        """Ids of the tokens with these very bytes."""
        order, texts = self._sorted
        return tuple(order[bisect.bisect_left(texts, text) : bisect.bisect_right(texts, text)])

    def between(self, left: bytes, right: bytes, least: int = 0) -> tuple[int, ...]:
        """Ids of the tokens that begin with `left` and end with `right`, which do not overlap.

        Args:
            left, right: bytes of valid UTF-8; empty ones are not a condition.
            least: bytes between the two.

        Returns:
            Sorted ids, the same object for the same question.
        """
        if not left and not right and least <= 1:
            return self.text_ids
        key = (left, right, least)
        if key not in self._known:
            size = len(left) + len(right) + least
            found = self.starting(left) if left else self.holding(right + SEPARATOR)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = tuple(sorted(
                i for i in found.tolist()
                if len(self.table[i]) >= size and self.table[i].endswith(right)
            ))  # fmt: skip
        return self._known[key]

    def inside(self, texts: Sequence[bytes]) -> Bits:
        """Bitset of the tokens that are part of one of these texts."""
        parts = {
            text[at : at + size]
            for text in texts
            for size in range(1, self.longest + 1)
            for at in range(len(text) - size + 1)
        }
        return self.bits(i for i, text in enumerate(self.table) if text in parts)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max((len(text) for text in self.table), default=0)

    @cached_property
    def _joined(self) -> tuple[bytes, list[int]]:
        """The bytes of all tokens after one another, and where each begins."""
        starts = [0, *itertools.accumulate(len(text) + 1 for text in self.table)][: self.size]
        return SEPARATOR.join([*self.table, b""]), starts

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], list[bytes]]:
        order = sorted((i for i, text in enumerate(self.table) if text), key=self.table.__getitem__)
        return np.asarray(order, dtype=np.int64), [self.table[i] for i in order]


token_table_of = per_tokenizer(TokenTable)
"""The tables of a tokenizer, made at the first call."""
