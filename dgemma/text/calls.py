"""Gemma's way of writing a tool call, in both directions: `call:NAME{key:value,...}`.

Keys are bare, strings stand between the control tokens `<|"|>`, the rest is as in JSON. A string
has no escapes, so what lies between two quote tokens is taken as it is. Knows nothing about ids:
text comes in cut at the quote tokens, so a look-alike within a string is only text.
Source: the Gemma 4 chat template; `null` is also read as `None`, which that template writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dgemma.errors import InvalidRequest
from dgemma.types import ToolCall

QUOTE = '<|"|>'
DEEPEST = 64
"""How deep lists and objects may be nested."""
_HEAD = re.compile(r"\s*call:\s*([^\s{}\[\],]+)\s*(?=\{)")
_NAME = re.compile(r"[^\s{}\[\],<>|\"]+")
_LEXEME = re.compile(r"[{}\[\],:]|[^\s{}\[\],:]+")
_BARE_KEY = re.compile(r"(?!')[^\s{}\[\],:<>|\"]+")
_INTEGER = re.compile(r"-?[0-9]{1,4000}")
_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "None": None}


class NotACall(ValueError):
    """The text cannot be read as a call; the message says where it went wrong."""


def format_call(call: ToolCall) -> str:
    """A call as text, without `<|tool_call>` around it; keys are sorted as the template does.

    Args:
        call: arguments of JSON values. A key that could be misread is quoted like a string.

    Raises:
        InvalidRequest: a value that is not JSON, a name that cannot be read back, or a string
            with `<|"|>` in it, which the format cannot hold.
    """
    if not _NAME.fullmatch(call.name):
        raise InvalidRequest(f"tool name {call.name!r} cannot be written in a call; use a word")
    return f"call:{call.name}" + _written(call.arguments, f"arguments of {call.name}", 0)


def _written(value: object, where: str, depth: int) -> str:
    if depth > DEEPEST:
        raise InvalidRequest(f"{where} are nested deeper than {DEEPEST} levels")
    if isinstance(value, str):
        if QUOTE in value:
            raise InvalidRequest(f"{where}: a string must not hold {QUOTE}")
        return QUOTE + value + QUOTE
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: str(key).lower())
        inner = (f"{_key(key, where)}:{_written(value[key], where, depth + 1)}" for key in keys)
        return "{" + ",".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_written(item, where, depth + 1) for item in value) + "]"
    raise InvalidRequest(f"{where}: {value!r} is not a JSON value")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidRequest(f"{where}: key {key!r} is not a string")
    return key if _BARE_KEY.fullmatch(key) else _written(key, where, 0)


def parse_call(pieces: str | Sequence[str]) -> ToolCall:
    """The call that a text holds.

    Args:
        pieces: the text between `<|tool_call>` and `<tool_call|>`, cut at the quote tokens: the
            first piece is syntax, the second a string, and so on in turn. A whole text is cut
            at each `<|"|>`.

    Raises:
        NotACall: it is none, or it is incomplete.
    """
    cut = cut_at_quotes(pieces)
    head = _HEAD.match(cut[0])
    if head is None:
        raise NotACall("it does not begin with call:NAME{")
    cut[0] = cut[0][head.end() :]
    reader = _CallReader(cut)
    arguments = reader.value(0)
    if reader.next() is not None:
        raise NotACall("there is text after the last }")
    return ToolCall(name=head.group(1), arguments=arguments)


def cut_at_quotes(pieces: str | Sequence[str]) -> list[str]:
    """The pieces of a call's text as `parse_call` takes them.

    Raises:
        NotACall: the last string is not closed.
    """
    cut = pieces.split(QUOTE) if isinstance(pieces, str) else list(pieces)
    if len(cut) % 2 == 0:
        raise NotACall("a string is not closed")
    return cut


def _lexemes(cut: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Strings as (True, text), and marks and bare words as (False, text)."""
    for k, piece in enumerate(cut):
        if k % 2:
            yield True, piece
        else:
            yield from ((False, found.group()) for found in _LEXEME.finditer(piece))


class _CallReader:
    """A recursive reader of values with one lexeme of lookahead."""

    def __init__(self, cut: Sequence[str]) -> None:
        self._source = _lexemes(cut)
        self._ahead = next(self._source, None)

    def next(self) -> tuple[bool, str] | None:
        """Takes the next lexeme; None at the end."""
        taken, self._ahead = self._ahead, next(self._source, None)
        return taken

    def _skip(self, mark: str) -> bool:
        """Takes the next lexeme if it is this mark."""
        if self._ahead != (False, mark):
            return False
        self.next()
        return True

    def value(self, depth: int) -> Any:
        """The next value."""
        if depth > DEEPEST:
            raise NotACall(f"it is nested deeper than {DEEPEST} levels")
        if self._skip("{"):
            return self._object(depth)
        if self._skip("["):
            return self._list(depth)
        taken = self.next()
        if taken is None:
            raise NotACall("it ends before a value")
        is_string, text = taken
        return text if is_string else bare_value(text)

    def _object(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self._skip("}"):
            return out
        while True:
            taken = self.next()
            if taken is None or (not taken[0] and taken[1] in "{}[],:"):
                raise NotACall("a key is missing")
            key = taken[1]
            if not taken[0] and (key[0] == "'" or '"' in key):
                raise NotACall(f"key {key} is quoted by other means than {QUOTE}")
            if not self._skip(":"):
                raise NotACall(f"no colon after key {key!r}")
            out[key] = self.value(depth + 1)
            if self._skip("}"):
                return out
            if not self._skip(","):
                raise NotACall(f"neither a comma nor a closing brace after {key!r}")

    def _list(self, depth: int) -> list[Any]:
        out: list[Any] = []
        if self._skip("]"):
            return out
        while True:
            out.append(self.value(depth + 1))
            if self._skip("]"):
                return out
            if not self._skip(","):
                raise NotACall("neither a comma nor a closing bracket in a list")


def bare_value(text: str) -> Any:
    """A number, true, false or null.

    Raises:
        NotACall: it is none of them.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    raise NotACall(f"{text!r} is neither a number, true, false, null nor a quoted string")
