"""From the value of a parameter to a grammar: schema, regex, Lark, GBNF, choices, structure, tools.

Source: the documents of llguidance 1.9 (`docs/syntax.md`, `docs/json_schema.md`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dgemma.constrain.guidance import llguidance, refused
from dgemma.constrain.json_schema import SPACING, checked_schema, json_grammar
from dgemma.constrain.lark import check_chain, checked_lark
from dgemma.constrain.limits import CHOICES, GRAMMAR, LITERAL, REGEX, RULES
from dgemma.constrain.matcher import Grammar, Source
from dgemma.constrain.regex import portable
from dgemma.constrain.structures import structure_of
from dgemma.constrain.tool_calls import calls_lark
from dgemma.errors import InvalidRequest
from dgemma.request_parts import ToolUse
from dgemma.text.token_table import token_table_of
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

WORDS = 32
"""Most words of its source that a completion is tried with."""
_UNSPELT_OPEN = re.compile(r"\\[A-Za-z]|\{[0-9,]*\}")
_UNSPELT = re.compile(rf"{_UNSPELT_OPEN.pattern}|\[[^\]]*\]")
_GBNF_HEAD = "%llguidance {}"
"""What the library's converter begins its grammars with."""


def make_grammar(kind: str, value: Any, tokenizer: Tokenizer, end_ids: Iterable[int]) -> Grammar:
    """Compile a grammar.

    Args:
        kind: a key of `SOURCES`.
        value: what the function there takes.
        tokenizer: whose ids the grammar is over.
        end_ids: never part of a text; the text ends before them.

    Raises:
        InvalidRequest: the value is broken, cannot be kept to in full, or has no finite text.
        MissingExtra: llguidance is not installed.
    """
    ends = tuple(end_ids)
    return Grammar(kind, SOURCES[kind](value, tokenizer, ends), tokenizer, ends)


def _json_schema(schema: Any, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """JSON texts that a JSON schema (Draft 2020-12) allows, on one line.

    Args:
        schema: an object or JSON text of one; True or {}: any JSON value. Named properties come in
            the order of the schema.
    """
    checked = checked_schema(schema)
    words = _words(" ".join(_patterns(checked)))
    return Source(json_grammar(checked), token_table_of(tokenizer).text, words)


def _regex(regex: str, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """Texts that a regular expression without look-around matches from beginning to end."""
    _text(regex, "regex")
    REGEX.check(len(regex.encode("utf-8")), "regex")
    source = llguidance().LLMatcher.grammar_from_regex(portable(regex, "regex", strict=False))
    return Source(source, token_table_of(tokenizer).text, _words(regex))


def _grammar(lark: str, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """Texts of a context-free grammar.

    Args:
        lark: in llguidance's Lark dialect, in GBNF (it has `::=`), or the name of a ready-made one.
            Control tokens are named as `<|name|>`; one that counts tokens or names an end id is
            refused.
    """
    _text(lark, "grammar")
    if lark in READY_MADE:
        return Source(_lark(READY_MADE[lark]), token_table_of(tokenizer).text)
    GRAMMAR.check(len(lark.encode("utf-8")), "grammar")
    words = _words(lark)
    if "::=" in lark:
        RULES.check(lark.count("::="), "grammar")
        try:
            lark = llguidance().gbnf_to_lark.gbnf_to_lark(lark).removeprefix(_GBNF_HEAD)
        except Exception as error:  # the converter's own class, and errors of its parser
            raise refused("grammar", f"it cannot be read as GBNF: {error}") from error
    ends = frozenset(map(tokenizer.token_text, end_ids))
    return Source(_lark(checked_lark(lark, ends, _inner_schema)), None, words)


def _inner_schema(schema: Any) -> dict[str, Any]:
    """A schema within a grammar, as the library writes it down."""
    return {**checked_schema(schema, "grammar: %json"), "x-guidance": SPACING}


def _choices(choices: Sequence[str], tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """One of these texts."""
    if isinstance(choices, str) or not choices:
        raise InvalidRequest("choices must be a list of at least one text; name the answers")
    for number, choice in enumerate(choices):
        _text(choice, f"choices[{number}]")
        LITERAL.check(len(choice.encode("utf-8")), f"choices[{number}]")
    texts = list(dict.fromkeys(choices))
    CHOICES.check(len(texts), "choices")
    alphabet = token_table_of(tokenizer).inside([text.encode("utf-8") for text in texts])
    return Source(_lark("start: " + " | ".join(map(json.dumps, texts))), alphabet)


def _structure(name: str, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """Markdown of a named structure; see `structure_of`."""
    _text(name, "structure")
    lark, closing = structure_of(name)
    return Source(_lark(lark), token_table_of(tokenizer).text, closing=closing)


def _tools(calls: ToolUse, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Source:
    """One call of one of some tools in Gemma's own form, markers included; or, if no call is
    required, any answer in which calls are of these tools, and of strict ones as they declare."""
    marks = [tokenizer.id_of(mark) for mark in ("<|tool_call>", "<tool_call|>", '<|"|>')]
    if None in marks:
        raise InvalidRequest("tools: the vocabulary has no markers of calls; use Gemma 4's")
    lark = calls_lark(calls)
    check_chain(lark, "tools")
    source = _lark(lark)
    if not calls.required:
        return Source(source)
    table = token_table_of(tokenizer)
    return Source(source, table.text | table.bits(mark for mark in marks if mark is not None))


SOURCES: dict[str, Callable[[Any, Tokenizer, Sequence[int]], Source]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _grammar,
    "choices": _choices,
    "structure": _structure,
    "tools": _tools,
}


def _lark(text: str) -> str:
    source: str = llguidance().LLMatcher.grammar_from_lark(text)
    return source


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
    closed = source.rfind("]") + 1  # an open [ is looked for a ] only where there is one
    plain = _UNSPELT.sub(" ", source[:closed]) + _UNSPELT_OPEN.sub(" ", source[closed:])
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
