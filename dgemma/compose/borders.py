"""Token borders: which tokens could have begun before a hole, or go on after it.

A text cut anywhere need not be cut where a token ends: after "Dear " the natural next token is
" Mira", which begins with the space. So the border's token is given up, and the position may hold
any token that begins (or ends) with its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgemma.text.token_table import TokenTable


def begun(table: TokenTable, ids: Sequence[int]) -> bytes:
    """The bytes of the last of these ids, if a longer token could begin with them."""
    last = table.table[ids[-1]] if ids else b""
    return last if last and table.between(last, b"", 1) else b""


def ended(table: TokenTable, ids: Sequence[int]) -> bytes:
    """The bytes of the first of these ids, if they begin within a word and a longer token could
    end with them. Elsewhere a token seldom reaches over the border, and the pinned token is worth
    more."""
    first = table.table[ids[0]] if ids else b""
    if not first.decode("utf-8", "replace")[:1].isalnum():
        return b""
    return first if table.between(b"", first, 1) else b""
