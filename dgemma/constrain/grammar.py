"""Grammars over token ids from a JSON schema, a regular expression, a grammar, choices or tools.

A `Grammar` is a language bound to a vocabulary, made once and walked many times. The grammar
library is llguidance, an optional extra; nothing else of the package knows it. Each walk has two
of its matchers: one over the tokens of the vocabulary, for masks, and one over single bytes, which
makes the search for a closing text independent of the size of the vocabulary.
Knows nothing about canvases or models.
Source: the documents of llguidance 1.9 (`docs/syntax.md`, `docs/json_schema.md`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dgemma.constrain.completion import shortest, symbols_of
from dgemma.constrain.guidance import GrammarAutomaton, compiled, llguidance, refused
from dgemma.constrain.json_schema import checked_schema, json_grammar
from dgemma.constrain.matcher import GrammarMatcher
from dgemma.constrain.regex import portable
from dgemma.constrain.tool_calls import call_lark, strict_lark
from dgemma.errors import EngineError, InvalidRequest
from dgemma.text.token_table import Bits, token_table_of
from dgemma.text.tokenizer import Tokenizer

MARKDOWN_TABLE = (
    "start: "
    + " | ".join(f"t{n}" for n in range(1, 9))
    + "\n"
    + "\n".join(
        f't{n}: ROW{n} "\\n" RULE{n} ("\\n" ROW{n})+\n'
        f"ROW{n}: /(\\| [^|\\s]([^|\\n\\r]*[^|\\s])? ){{{n}}}\\|/\n"
        f"RULE{n}: /(\\| :?-{{3,}}:? ){{{n}}}\\|/"
        for n in range(1, 9)
    )
)
"""A table of one to eight columns, every row with the same number; at least one row of values."""

CODE_FENCE = r"""
start: "```" LANGUAGE "\n" LINE* "```"
LANGUAGE: /[0-9A-Za-z_+#.-]{0,24}/
LINE: /`{0,2}([^`\n\r][^\n\r]*)?\n/
"""
"""A block of code between fences, with a language word or none; no line begins with a fence."""

READY_MADE = {"markdown-table": MARKDOWN_TABLE, "code-fence": CODE_FENCE}

LONGEST = 1 << 15
"""Most bytes of the shortest text of a language."""
MOST_CHOICES = 1999
"""The library has room for 2,000 things at a place, and the rule itself is one."""
WORDS = 32
"""Most words of its source that a closing text is tried with."""
_REFUSED_LARK = re.compile(r"\b(max_tokens|temperature|stop|stop_capture)\b\s*=|%llguidance|<\[")


class Grammar:
    """A language over the ids of one tokenizer.

    Attributes:
        kind: "json_schema", "regex", "grammar", "choices" or "tools".
    """

    def __init__(
        self,
        kind: str,
        source: str,
        tokenizer: Tokenizer,
        end_ids: Iterable[int],
        alphabet: Bits | None,
        words: Sequence[str] = (),
    ) -> None:
        """Most callers use one of the makers.

        Args:
            kind: the name of the parameter that it came from, for messages.
            source: in llguidance's own form.
            tokenizer: whose ids the language is over.
            end_ids: never part of a text; the text ends before them.
            alphabet: bitset of ids that may occur, or None.
            words: that a text may have to hold, see `completion.shortest`.

        Raises:
            InvalidRequest: the source is broken or has no finite text.
            MissingExtra: llguidance is not installed.
        """
        self.kind = kind
        self._letters = token_table = token_table_of(tokenizer)
        self._tokenizer = tokenizer
        self._ends = frozenset(end_ids)
        self._no_ends = token_table.all_but(self._ends)
        self._alphabet = None if alphabet is None else alphabet & self._no_ends
        self._source = source
        self._roots: tuple[Any, Any] | None = compiled(kind, source, tokenizer)
        self._words = symbols_of(words)
        automaton = GrammarAutomaton(self._roots[1].deep_copy(), len(token_table.special_ids))
        try:
            text = shortest(automaton, LONGEST, 2 * LONGEST, self._words)
        except EngineError as error:
            raise InvalidRequest(f"{kind}: {error}") from error
        if text is None:
            raise InvalidRequest(
                f"{kind}: no text of at most {LONGEST} bytes was found for it; is there a longer "
                "text in it, a recursion without an end, or a length that cannot be reached?"
            )
        self._text = text

    @classmethod
    def from_json_schema(
        cls, schema: Mapping[str, Any] | str | bool, tokenizer: Tokenizer, end_ids: Iterable[int]
    ) -> Grammar:
        """JSON texts that a JSON schema (Draft 2020-12) allows, on one line.

        Args:
            schema: as an object or as JSON text; True or {}: any JSON value. Named properties
                come in the order of the schema.
            tokenizer, end_ids: as in `Grammar`.

        Raises:
            InvalidRequest: no schema, one that nothing satisfies, or one with a keyword that
                could not be kept to in full.
            MissingExtra: llguidance is not installed.
        """
        checked = checked_schema(schema)
        source = json_grammar(checked)
        words = _words(" ".join(_patterns(checked)))
        return cls("json_schema", source, tokenizer, end_ids, token_table_of(tokenizer).text, words)

    @classmethod
    def from_regex(cls, regex: str, tokenizer: Tokenizer, end_ids: Iterable[int]) -> Grammar:
        """Texts that a regular expression matches from beginning to end.

        Raises:
            InvalidRequest: it is broken, uses look-around, or nothing matches it.
            MissingExtra: llguidance is not installed.
        """
        _text(regex, "regex")
        source = llguidance().LLMatcher.grammar_from_regex(portable(regex, "regex", strict=False))
        return cls(
            "regex", source, tokenizer, end_ids, token_table_of(tokenizer).text, _words(regex)
        )

    @classmethod
    def from_lark(cls, lark: str, tokenizer: Tokenizer, end_ids: Iterable[int]) -> Grammar:
        """Texts of a context-free grammar.

        Args:
            lark: in llguidance's Lark dialect, in GBNF (it has `::=`), or the name of a ready-made
                one ("markdown-table", "code-fence"). Control tokens are named as `<|name|>`.
            tokenizer, end_ids: as in `Grammar`.

        Raises:
            InvalidRequest: it is broken, has no finite text, counts tokens or names an end id.
            MissingExtra: llguidance is not installed.
        """
        _text(lark, "grammar")
        library = llguidance()
        if lark in READY_MADE:
            source = library.LLMatcher.grammar_from_lark(READY_MADE[lark])
            return cls("grammar", source, tokenizer, end_ids, token_table_of(tokenizer).text)
        ends = [tokenizer.token_text(token_id) for token_id in end_ids]
        gbnf = "::=" in lark
        code = re.sub(r'"(\\.|[^"\\\n])*"|(?m://.*$|#.*$)', '""', lark)
        if found := _REFUSED_LARK.search(code):
            raise InvalidRequest(f"grammar: {found.group()!r} is not supported; leave it out")
        if named := [name for name in ends if name in code]:
            raise InvalidRequest(f"grammar: {named[0]} ends every text by itself; leave it out")
        if gbnf:
            try:
                lark = library.gbnf_to_lark.any_to_lark(lark)
            except Exception as error:  # the converter's own class, and errors of its parser
                raise refused("grammar", f"it cannot be read as GBNF: {error}") from error
        source = library.LLMatcher.grammar_from_lark(lark)
        return cls("grammar", source, tokenizer, end_ids, None, _words(lark))

    @classmethod
    def from_choices(
        cls, choices: Sequence[str], tokenizer: Tokenizer, end_ids: Iterable[int]
    ) -> Grammar:
        """One of these texts.

        Raises:
            InvalidRequest: there is none, or one is empty, too long or no Unicode text.
            MissingExtra: llguidance is not installed.
        """
        if isinstance(choices, str) or not choices:
            raise InvalidRequest("choices must be a list of at least one text; name the answers")
        for number, choice in enumerate(choices):
            _text(choice, f"choices[{number}]")
            if (size := len(choice.encode("utf-8"))) > LONGEST:
                raise InvalidRequest(
                    f"choices[{number}] has {size} bytes, more than {LONGEST}; shorten it"
                )
        texts = list(dict.fromkeys(choices))
        if len(texts) > MOST_CHOICES:
            raise InvalidRequest(
                f"choices has {len(texts)} texts, more than {MOST_CHOICES}; ask in two steps, or "
                "say them as a regex"
            )
        source = "start: " + " | ".join(json.dumps(text) for text in texts)
        alphabet = token_table_of(tokenizer).inside([text.encode("utf-8") for text in texts])
        source = llguidance().LLMatcher.grammar_from_lark(source)
        return cls("choices", source, tokenizer, end_ids, alphabet)

    @classmethod
    def from_tools(
        cls,
        tools: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        end_ids: Iterable[int],
        name: str | None = None,
    ) -> Grammar:
        """One call of one of these tools, in Gemma's own form, markers included.

        Args:
            tools: in OpenAI's form; arguments follow `parameters`, keys sorted as the chat
                template sorts them. Only properties that are named can be written.
            tokenizer, end_ids: as in `Grammar`.
            name: of the tool to call; None: any of them.

        Raises:
            InvalidRequest: no tool, no tool of that name, or a schema that cannot be kept to.
            MissingExtra: llguidance is not installed.
        """
        marks = _call_marks(tokenizer)
        source = llguidance().LLMatcher.grammar_from_lark(call_lark(tools, name))
        token_table = token_table_of(tokenizer)
        alphabet = token_table.text | token_table.bits(marks)
        return cls("tools", source, tokenizer, end_ids, alphabet)

    @classmethod
    def from_strict_tools(
        cls, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, end_ids: Iterable[int]
    ) -> Grammar:
        """Any answer in which every call is one of these tools, of strict ones as they declare.

        Raises:
            InvalidRequest: a strict tool whose schema cannot be kept to.
            MissingExtra: llguidance is not installed.
        """
        _call_marks(tokenizer)
        source = llguidance().LLMatcher.grammar_from_lark(strict_lark(tools))
        return cls("tools", source, tokenizer, end_ids, None)

    def matcher(self) -> GrammarMatcher:
        """A fresh walk from the beginning; cheap."""
        if self._roots is None:
            self._roots = compiled(self.kind, self._source, self._tokenizer)
        tokens, single = self._roots
        return GrammarMatcher(
            tokens.deep_copy(), single, self._tokenizer, self._no_ends, self._ends,
            self._alphabet, self._words, self._text, self._broken,
        )  # fmt: skip

    def _broken(self) -> None:
        """Walks share the library's tables, which stay broken once a limit was hit in one."""
        self._roots = None


def _call_marks(tokenizer: Tokenizer) -> list[int]:
    marks = [tokenizer.id_of(mark) for mark in ("<|tool_call>", "<tool_call|>", '<|"|>')]
    if None in marks:
        raise InvalidRequest("tools: the vocabulary has no markers of calls; use Gemma 4's")
    return [mark for mark in marks if mark is not None]


def _text(text: object, where: str) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidRequest(f"{where} must be a text that is not empty; got {text!a}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{where}: {text!a} has a lone surrogate; send valid Unicode"
        ) from None


def _words(source: str) -> list[str]:
    """Runs of letters and digits that a grammar's source spells out, the longest first."""
    plain = re.sub(r"\\[A-Za-z]|\[[^\]]*\]|\{[0-9,]*\}", " ", source)
    found = dict.fromkeys(re.findall(r"\w{2,}", plain))
    return sorted(found, key=len, reverse=True)[:WORDS]


def _patterns(node: Any) -> Iterator[str]:
    """Every pattern in a schema."""
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for part in node.values():
            yield from _patterns(part)
    elif isinstance(node, list):
        for part in node:
            yield from _patterns(part)
