"""Reads grammars in llguidance's Lark dialect as far as they must be checked before it sees them.

Lexemes as the library cuts them, so that nothing can hide in what looks like a text or a comment;
JSON schemas within a grammar, which go through the front end of all schemas; and how far rules need
one another in a row, since the library's recursion over them ends in a stack overflow.
Source: `parser/src/lark/lexer.rs` of llguidance 1.9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from dgemma.constrain.graph import longest_way
from dgemma.constrain.limits import CHAIN
from dgemma.errors import InvalidRequest

_LEXEME = re.compile(
    r"(?:#|//)[^\n]*+"  # a comment
    r'|"(?:\\.|[^"\\\n])*+"i?'
    r"|/(?:\\.|[^/\\])++/[imslux]*+"
    r"|<[^<>\s]++>"  # a control token
    r"|[%@]?[!?_A-Za-z0-9][_A-Za-z0-9\-]*+"
    r"|\s++|.",
    re.DOTALL,
)
_BARRED = ("max_tokens", "temperature", "stop", "stop_capture")
_OPEN = {'"': "a text", "/": "a regular expression"}


def checked_lark(
    lark: str, ends: Collection[str], json_source: Callable[[Any], dict[str, Any]]
) -> str:
    """The grammar with its schemas checked and written anew.

    Args:
        lark: in Lark, as a user wrote it.
        ends: names of control tokens that end every text by themselves.
        json_source: checks a schema, and says it in the library's terms.

    Raises:
        InvalidRequest: it cannot be read, counts tokens, names an end, or has too deep rules.
    """
    out, word = list[str](), ""  # the last word, if nothing but blanks came after it
    at, decode = 0, json.JSONDecoder().raw_decode
    while at < len(lark):
        piece = _piece(lark, at)
        at += len(piece)
        if piece == "=" and word in _BARRED:
            raise InvalidRequest(f"grammar: '{word}=' is not supported; leave it out")
        if piece in ends:
            raise InvalidRequest(f"grammar: {piece!r} ends every text by itself; leave it out")
        if piece == "%llguidance" or piece.startswith("<["):
            raise InvalidRequest(f"grammar: {piece!r} is not supported; leave it out")
        if piece in ("%json", "%regex"):
            while at < len(lark) and lark[at] in " \t\r\n":
                at += 1
            try:
                value, at = decode(lark, at)
                text = json.dumps(json_source(value) if piece == "%json" else value)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"grammar: no JSON after {piece} ({error}); correct it"
                ) from None
            piece = f"{piece} {text}"
        out.append(piece)
        word = word if piece.isspace() else piece
    checked = "".join(out)
    check_chain(checked, "grammar")
    return checked


def _piece(lark: str, at: int) -> str:
    """The lexeme that begins at a place."""
    found = _LEXEME.match(lark, at)
    assert found is not None, "any character is a lexeme"
    piece = found[0]
    if piece in _OPEN:
        raise InvalidRequest(f"grammar: {_OPEN[piece]} is not closed; close it")
    return piece


def _lexemes(lark: str) -> Iterator[str]:
    at = 0
    while at < len(lark):
        piece = _piece(lark, at)
        at += len(piece)
        yield piece


def check_chain(lark: str, where: str) -> None:
    """Raise InvalidRequest if rules need one another too far in a row.

    A rule counts as one, and each group within another as one more.
    """
    weights: dict[str, int] = {}
    edges: dict[str, set[str]] = {}
    rule, depth, word, header, fresh = "", 0, "", False, True
    for piece in _lexemes(lark):
        if piece.isspace():
            fresh |= "\n" in piece and depth <= 0
            continue
        if piece == ":":
            rule, depth, header = word, 0, False
            weights.setdefault(rule, 1)
            edges.setdefault(rule, set())
        elif piece in "()[]{}":
            depth += 1 if piece in "([{" else -1
            weights[rule] = max(weights.get(rule, 1), 1 + depth)
        elif piece[0].isalnum() or piece[0] in "_!?":
            header = fresh or header
            if fresh or not header:
                word = piece.lstrip("!?")
            if not header:
                edges.setdefault(rule, set()).add(word)
        fresh = False
    CHAIN.check(longest_way(weights, edges), where)
