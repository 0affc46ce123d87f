"""A grammar that another process has compiled, as plain JSON: its source, and a short text of it.

With both in hand the grammar is made without the work on schemas, and without a search. Knows the
two as JSON. Knows nothing about processes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dgemma.constrain.matcher import Grammar, Source
from dgemma.constrain.sources import SOURCES
from dgemma.request_parts import ToolUse
from dgemma.text.tokenizer import Tokenizer


class Precompiled(NamedTuple):
    """A grammar's source, and its short text as symbols; see `Grammar`."""

    source: Source
    text: Sequence[int]

    def packed(self) -> dict[str, Any]:
        """As JSON."""
        alphabet = self.source.alphabet
        bits = None if alphabet is None else base64.b64encode(alphabet.astype("<i4").tobytes())
        return {
            "source": self.source.text, "words": list(self.source.words),
            "closing": list(self.source.closing), "text": list(self.text),
            "alphabet": None if bits is None else bits.decode("ascii"),
        }  # fmt: skip

    @classmethod
    def unpacked(cls, given: dict[str, Any]) -> Precompiled:
        """The same back."""
        bits = given["alphabet"]
        alphabet = None if bits is None else np.frombuffer(base64.b64decode(bits), dtype="<i4")
        whole = None if alphabet is None else alphabet.astype(np.int32)
        source = Source(given["source"], whole, given["words"], given["closing"])
        return cls(source, given["text"])


def precompile(
    kind: str, value: Any, tokenizer: Tokenizer, end_ids: Sequence[int]
) -> Precompiled:  # fmt: skip
    """All the work on a grammar; see `make_grammar`.

    Args:
        value: plain JSON; for "tools" the members of a `ToolUse`.

    Raises:
        InvalidRequest: the value is broken, cannot be kept to in full, or has no finite text.
        MissingExtra: llguidance is not installed.
    """
    given = ToolUse(*value) if kind == "tools" else value
    source = SOURCES[kind](given, tokenizer, end_ids)
    return Precompiled(source, Grammar(kind, source, tokenizer, end_ids).text)
