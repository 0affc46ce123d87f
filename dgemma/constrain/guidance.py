"""The one door to llguidance, the optional library that grammars are compiled with.

Knows how a vocabulary is handed to it and what its errors look like. Each grammar is compiled for
two vocabularies: the tokenizer's own, and one of control tokens and single bytes in the order of
`completion.BYTE_ORDER`, in which the search for a completion takes microseconds a step whatever
the size of the real one. Knows nothing about schemas.
Source: llguidance 1.9, `TokenizerWrapper` and `LLMatcher`.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from dgemma.constrain.completion import BYTE_ORDER, BYTES, RANK
from dgemma.errors import EngineError, InvalidRequest, MissingExtra
from dgemma.text.token_table import TokenTable, per_tokenizer, token_table_of
from dgemma.text.tokenizer import Tokenizer

STEP_FUEL = 4_000_000
"""Work that the library may spend on one mask, some 0.3 s of it; its own limit, 200,000, is hit by
patterns of Unicode classes at 262,144 ids."""
BYTE_FUEL = 200_000
"""The same over single bytes, where a search makes thousands of steps: some 15 ms. What needs more
is refused before the first answer."""


def llguidance() -> ModuleType:
    """The library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import llguidance
        import llguidance.gbnf_to_lark
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "structured output needs the llguidance package; pip install 'dgemma[constrain]'"
        ) from error
    return llguidance


def first_line(message: str) -> str:
    """The first line of the library's message, without the listing that follows."""
    line = message.strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:300] + "..."


def refused(kind: str, message: str) -> InvalidRequest:
    """The error for what the library cannot compile."""
    lines = [line.strip() for line in message.strip().splitlines()]
    said = next((line for line in lines if line.startswith("error:")), "")
    text = " ".join(filter(None, (first_line(message), said)))
    return InvalidRequest(f"{kind}: {text}; correct it or leave the part out")


def compiled(kind: str, source: str, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Matchers of a grammar at its beginning, over tokens and over single bytes.

    Raises:
        InvalidRequest: the library cannot compile it, or would not keep to a part of it.
        MissingExtra: the library is not installed.
    """
    tokens, single = _vocabularies(tokenizer)
    return _compiled(kind, source, tokens), _compiled(kind, source, single, BYTE_FUEL)


def check(kind: str, source: str) -> None:
    """Compile a grammar without control tokens for its errors alone; see `compiled`."""
    _compiled(kind, source, _plain_bytes(), BYTE_FUEL)


def _compiled(kind: str, source: str, vocabulary: Any, fuel: int = STEP_FUEL) -> Any:
    library = llguidance()
    limits = library.LLParserLimits(step_lexer_fuel=fuel)
    matcher = library.LLMatcher(vocabulary, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise refused(kind, matcher.get_error())
    if ignored := matcher.get_grammar_warnings():
        raise refused(kind, "; ".join(ignored))
    return matcher


@lru_cache(maxsize=1024)
def has_text(lark: str) -> bool:
    """Whether a grammar of one terminal or one JSON value has a text; True if it is broken."""
    library = llguidance()
    source = library.LLMatcher.grammar_from_lark(lark)
    matcher = library.LLMatcher(_plain_bytes(), source, log_level=0)
    if matcher.is_error():
        return "Unsatisfiable" not in matcher.get_error()
    options = int.from_bytes(matcher.compute_bitmask(), "little") & ((1 << BYTES) - 1)
    stuck = matcher.get_error().startswith("NoExtensionBias")
    return bool(options) or matcher.is_accepting() or not stuck


class GrammarAutomaton:
    """A `completion.ByteAutomaton` over the 256 bytes and, above them, the control tokens."""

    cost = 1

    def __init__(self, matcher: Any, controls: int) -> None:
        self._matcher = matcher
        self._texts = (1 << (BYTES + controls)) - 1  # all but the end

    def options(self) -> int:
        if self._matcher.is_stopped():
            return 0
        return int.from_bytes(self._matcher.compute_bitmask(), "little") & self._texts

    def forced(self) -> list[int]:
        found: list[int] = self._matcher.compute_ff_tokens()
        self._healthy()
        return found

    def push(self, symbols: list[int]) -> None:
        if symbols:
            self._matcher.consume_tokens(symbols)
            self._healthy()

    def _healthy(self) -> None:
        if self._matcher.is_error():
            raise EngineError(
                f"the grammar cannot follow its own text "
                f"({first_line(self._matcher.get_error())}); "
                "simplify it"
            )

    def pop(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)

    @property
    def accepting(self) -> bool:
        found: bool = self._matcher.is_accepting()
        return found


class Symbols:
    """What the ids of a vocabulary are to an automaton over bytes and control tokens.

    Attributes:
        ids: one id for each symbol.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self.ids = [*(table.byte_ids[byte] for byte in BYTE_ORDER), *table.special_ids]

    def count(self, token_id: int) -> int:
        """How many symbols an id has."""
        return len(self._table.table[token_id]) or 1

    def of(self, token_id: int) -> list[int]:
        """The symbols of an id, one after another."""
        text = self._table.table[token_id]
        if not text:
            return [BYTES + bisect.bisect_left(self._table.special_ids, token_id)]
        return [RANK[byte] for byte in text]


class _Vocabulary:
    """A tokenizer as the library wants it; holds the tokenizer weakly, so that it can go."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.special_token_ids = token_table_of(tokenizer).special_ids
        self.tokens = list(token_table_of(tokenizer).table)
        for token_id in self.special_token_ids:
            self.tokens[token_id] = tokenizer.token_text(token_id).encode()
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "a grammar outlived its tokenizer"
        return tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class _SingleBytes:
    """The bytes in order, then control tokens, and an end that no grammar can name."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, control_names: Sequence[str]) -> None:
        names = [name.encode() for name in control_names]
        self.tokens = [*(bytes((byte,)) for byte in BYTE_ORDER), *names, b"<|end of text|>"]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [*range(BYTES, self.eos_token_id + 1)]

    def __call__(self, text: str | bytes) -> list[int]:
        return [RANK[byte] for byte in (text.encode() if isinstance(text, str) else text)]


@lru_cache(maxsize=1)
def _plain_bytes() -> Any:
    """The library's form of the bytes without control tokens."""
    return llguidance().LLTokenizer(_SingleBytes(()), slices=[])


@per_tokenizer
def _vocabularies(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """The library's form of the tokens and of the single bytes."""
    make = llguidance().LLTokenizer
    single = make(_SingleBytes(tokenizer.control_names()), slices=[])
    return make(_Vocabulary(tokenizer)), single
