"""Token borders: which tokens could have begun before a hole, or go on behind it.

A text cut anywhere need not be cut where a token ends: after "Dear " the natural next token is
" Mira", which begins with the space. So the border's token is given up, and the position may hold
any token that begins (or ends) with its bytes. Knows the bytes of tokens; knows no canvases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from dgemma.text.tokenizer import Tokenizer

_ABOVE = b"\xff" * 4
"""No text holds the byte 0xFF; only a byte token does, and nothing begins with it."""
_MOST_KNOWN = 256


class TextTokens:
    """The tokens of a vocabulary that stand for text, found by how they begin and end.

    Attributes:
        ids: all of them, sorted; no control token is among them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        table = [(tokenizer.token_bytes(i), i) for i in range(tokenizer.vocab_size)]
        table = [(text, i) for text, i in table if text]
        self.ids = tuple(i for _, i in table)
        self._forward = sorted(table)
        self._backward = sorted((text[::-1], i) for text, i in table)
        self._known: dict[tuple[bytes, bytes, int], tuple[int, ...]] = {}

    def between(self, left: bytes, right: bytes, least: int = 0) -> tuple[int, ...]:
        """Ids of tokens that begin with `left` and end with `right`, which do not overlap.

        Args:
            left, right: bytes; empty ones are no condition.
            least: bytes between the two.

        Returns:
            Sorted ids, the same object for the same question.
        """
        if not left and not right and least <= 1:
            return self.ids
        key = (left, right, least)
        found = self._known.get(key)
        if found is None:
            table, start = (self._forward, left) if left else (self._backward, right[::-1])
            lo, hi = bisect_left(table, (start,)), bisect_left(table, (start + _ABOVE,))
            size = len(left) + len(right) + least
            found = tuple(sorted(
                i for text, i in table[lo:hi]
                if len(text) >= size and self._bytes(i).endswith(right)
            ))  # fmt: skip
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = found
        return found

    def _bytes(self, token_id: int) -> bytes:
        return self.tokenizer.token_bytes(token_id)

    def exactly(self, text: bytes) -> tuple[int, ...]:
        """Ids of tokens with these very bytes."""
        lo, hi = bisect_left(self._forward, (text,)), bisect_left(self._forward, (text + b"\0",))
        return tuple(i for found, i in self._forward[lo:hi] if found == text)

    def begun(self, ids: Sequence[int]) -> bytes:
        """The bytes of the last of these ids, if a longer token could begin with them."""
        last = self._bytes(ids[-1]) if ids else b""
        return last if last and self.between(last, b"", 1) else b""

    def ended(self, ids: Sequence[int]) -> bytes:
        """The bytes of the first of these ids, if they begin within a word and a longer token
        could end with them. Elsewhere a token seldom reaches over the border, and what is pinned
        there is worth more."""
        first = self._bytes(ids[0]) if ids else b""
        if not first.decode("utf-8", "replace")[:1].isalnum():
            return b""
        return first if self.between(b"", first, 1) else b""


@lru_cache(maxsize=4)
def text_tokens(tokenizer: Tokenizer) -> TextTokens:
    """The table of a tokenizer, made once."""
    return TextTokens(tokenizer)
