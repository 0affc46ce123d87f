"""Calls that are not written in Gemma's way, but can mean only one thing.

Read are: "..." and '...' with escapes in place of the quote tokens, around keys too; (...) for
{...}, = for :, a comma before a closing bracket, True and False, +1, .5 and 5., a name without
`call:`, and a JSON object with a name and its arguments in place of it all. Not read are: words
without quotes as values, values without keys, a key that comes twice, and whatever is not closed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dgemma.text.calls import DEEPEST, NotACall, bare_value, cut_at_quotes, parse_call
from dgemma.types import ToolCall

_PREFIX = r"\s*+(?:call\s*+:\s*+)?+"
_HEAD = re.compile(_PREFIX + r"([^\s{}\[\](),=<>|\"']++)(?<!:)\s*+(?=[{(])")
_JSON_HEAD = re.compile(_PREFIX + r"(?=\{)")
_LEXEME = re.compile(
    r"""\s*+(?:([{}\[\](),:=])|"((?:[^"\\]|\\.)*+)"|'((?:[^'\\]|\\.)*+)'|([^\s{}\[\](),:="']++))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {
    '"': '"', "'": "'", "\\": "\\", "/": "/",
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
_KEY = re.compile(r"[^{}\[\](),:=<>|]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = {"True": True, "False": False}
_ARGUMENTS = ("arguments", "parameters")
_CLOSING = {"{": "}", "[": "]", "(": ")"}


class _Lexeme(NamedTuple):
    """A quoted text, or a bracket, a mark or a bare word."""

    quoted: bool
    text: str


def read_call(pieces: str | Sequence[str]) -> ToolCall:
    """The call that a text holds, in Gemma's form or in one that can mean only that call.

    Takes time in proportion to the text.

    Args:
        pieces: see `parse_call`, which reads the text first.

    Raises:
        NotACall: it is none, it is incomplete, or it could mean several things.
    """
    try:
        return parse_call(pieces)
    except NotACall as error:
        try:
            return _lenient(cut_at_quotes(pieces))
        except NotACall:
            raise error from None


def called_name(cut: Sequence[str]) -> str | None:
    """The name that the pieces of a call's text begin with, if they do."""
    head = _HEAD.match(cut[0])
    return head.group(1) if head else None


def _lenient(cut: list[str]) -> ToolCall:
    head = _HEAD.match(cut[0])
    if head is None:
        start = _JSON_HEAD.match(cut[0])
        if start is None:
            raise NotACall("it begins neither with NAME( or NAME{ nor with {")
        return _from_json(_Reader([cut[0][start.end() :], *cut[1:]]).whole())
    reader = _Reader([cut[0][head.end() :], *cut[1:]])
    return ToolCall(name=head.group(1), arguments=reader.whole())


def _from_json(given: Mapping[str, Any]) -> ToolCall:
    """The call of an object such as {"name": ..., "arguments": {...}}."""
    more = {"id", "type"}
    if set(given) - more == {"function"} and isinstance(given["function"], dict):
        given, more = given["function"], set()
    name = given.get("name")
    keys = set(given) - more - {"name"}
    if not isinstance(name, str) or len(keys) != 1 or not keys <= set(_ARGUMENTS):
        raise NotACall("the object is not a name with its arguments")
    arguments = given[keys.pop()]
    if isinstance(arguments, str):  # as OpenAI's API writes them
        arguments = _Reader([arguments]).whole()
    if not isinstance(arguments, dict):
        raise NotACall("the arguments are not an object")
    return ToolCall(name=name, arguments=arguments)


def _lexemes(cut: Sequence[str]) -> Iterator[_Lexeme]:
    for number, piece in enumerate(cut):
        if number % 2:
            yield _Lexeme(True, piece)
            continue
        at, end = 0, len(piece.rstrip())
        while at < end:
            found = _LEXEME.match(piece, at)
            if found is None:
                raise NotACall("a quote is not closed")
            mark, double, single, word = found.groups()
            if double is None and single is None:
                yield _Lexeme(False, mark or word)
            else:
                yield _Lexeme(True, _unescaped(double if single is None else single))
            at = found.end()


def _unescaped(text: str) -> str:
    """A text within plain quotes, its escapes resolved."""

    def one(found: re.Match[str]) -> str:
        code = found.group(1)
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPED:
            raise NotACall(f"the escape {found.group()} is not known")
        return _ESCAPED[code]

    plain = _ESCAPE.sub(one, text)
    try:  # two halves of a character become one
        return plain.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise NotACall("half of a character is escaped") from None


class _Reader:
    """A recursive reader of values with one lexeme of lookahead."""

    def __init__(self, cut: Sequence[str]) -> None:
        self._source = _lexemes(cut)
        self._ahead = next(self._source, None)

    def whole(self) -> dict[str, Any]:
        """The arguments, which are all that is left."""
        opened = self._next()
        if opened in ((False, "("), (False, "{")):
            arguments = self._opened(opened.text)
            if self._ahead is None:
                return arguments
        raise NotACall("the arguments are not an object, or there is text after them")

    def _opened(self, bracket: str) -> dict[str, Any]:
        if bracket == "(" and self._skip("{"):  # f({...})
            arguments = self._object("}", 0)
            self._skip(",")
            if not self._skip(")"):
                raise NotACall("there is more than one object in the brackets")
            return arguments
        return self._object(_CLOSING[bracket], 0)

    def _next(self) -> _Lexeme:
        taken = self._ahead
        if taken is None:
            raise NotACall("it ends too early")
        self._ahead = next(self._source, None)
        return taken

    def _skip(self, *marks: str) -> bool:
        """Takes the next lexeme if it is one of these marks."""
        if self._ahead is None or self._ahead.quoted or self._ahead.text not in marks:
            return False
        self._next()
        return True

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise NotACall(f"it is nested deeper than {DEEPEST} levels")
        if self._skip("{"):
            return self._object("}", depth)
        if self._skip("["):
            return self._list(depth)
        taken = self._next()
        return taken.text if taken.quoted else _bare(taken.text)

    def _object(self, closing: str, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not self._skip(closing):
            key = self._next()
            if not (key.quoted or _KEY.fullmatch(key.text)) or not self._skip(":", "="):
                raise NotACall("a key is missing")
            if key.text in out:
                raise NotACall(f"key {key.text!r} comes twice")
            out[key.text] = self._value(depth + 1)
            if not self._skip(","):
                if not self._skip(closing):
                    raise NotACall(f"neither a comma nor {closing} after {key.text!r}")
                break
        return out

    def _list(self, depth: int) -> list[Any]:
        out: list[Any] = []
        while not self._skip("]"):
            out.append(self._value(depth + 1))
            if not self._skip(","):
                if not self._skip("]"):
                    raise NotACall("neither a comma nor ] in a list")
                break
        return out


def _bare(text: str) -> Any:
    """A number, true, false or null, in more spellings than Gemma's."""
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text) and (text[0] in "+." or "." in text):
        plain = text.removeprefix("+")
        if plain.isdigit():
            return bare_value(plain)
        value = float(plain)
        if math.isfinite(value):
            return value
    return bare_value(text)
