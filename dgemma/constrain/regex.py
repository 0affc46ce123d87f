"""Regular expressions that mean the same to everyone who reads them.

A pattern is written once and read by several engines: the grammar library's (Rust's syntax), and
whoever checks the answer later (Python's `re`, JavaScript). Here it is narrowed to what they have
in common, so that a text that matches here matches there. Knows nothing about JSON or tokens.
Source: the syntax pages of Rust's `regex` crate and of Python's `re`.
"""

from __future__ import annotations

import re

from dgemma.errors import InvalidRequest

_OUTSIDE = {
    "d": "[0-9]", "w": "[0-9A-Za-z_]", "D": r"\P{Nd}",
    "W": r"[^\p{Alphabetic}\p{M}\p{N}\p{Pc}]", "S": r"[^\s\x1c-\x1f]",
}  # fmt: skip
_IN_CLASS = {"d": "0-9", "w": "0-9A-Za-z_", "D": r"\P{Nd}"}
_IN_NEGATED = {"d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": r"\s\x1c-\x1f"}
_DOUBLES = ("&&", "--", "~~", "||")


def portable(pattern: str, where: str, *, strict: bool = True) -> str:
    """The pattern in Rust's syntax; what it matches, `re.search` matches with the original too.

    Args:
        pattern: in the syntax that Python and JavaScript share.
        where: the place of the pattern, for messages.
        strict: refuse what Python's `re` cannot read.

    Raises:
        InvalidRequest: it is broken, or engines would disagree about it.
    """
    reader = _PatternReader(pattern, where)
    out = reader.read(strict)
    if strict:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidRequest(
                f"{where}: regular expression {pattern!r} cannot be read ({error}); "
                "use syntax that Python and JavaScript share"
            ) from None
    return out


def alternatives(pattern: str) -> list[str]:
    """The pattern cut at each `|` that stands in no group or class."""
    out, depth, in_class, at = [""], 0, False, 0
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(piece)
        if in_class:
            in_class = piece != "]"
        elif piece == "[":
            in_class = True
            if pattern[at : at + 1] == "^":
                piece, at = piece + "^", at + 1
            if pattern[at : at + 1] == "]":
                piece, at = piece + "]", at + 1
        depth += {"(": 1, ")": -1}.get(piece, 0) if not in_class else 0
        if piece == "|" and not depth and not in_class:
            out.append("")
        else:
            out[-1] += piece
    return out


def whole(pattern: str) -> str:
    """A pattern that matches a whole text where `pattern` is found somewhere in it."""
    out = []
    for part in alternatives(pattern):
        head, tail = "(?s:.*)", "(?s:.*)"
        if part.startswith("^"):
            head, part = "", part[1:]
        if re.search(r"(?<!\\)(\\\\)*\$$", part):
            tail, part = "", part[:-1]
        out.append(f"{head}(?:{part}){tail}")
    return "|".join(out)


class _PatternReader:
    """Goes through a pattern once, writing what it means in Rust's syntax."""

    def __init__(self, pattern: str, where: str) -> None:
        self._pattern, self._where = pattern, where
        self._at = 0

    def _refuse(self, what: str, remedy: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._where}: {what} in regular expression {self._pattern!r}; {remedy}"
        )

    def _take(self, count: int = 1) -> str:
        taken = self._pattern[self._at : self._at + count]
        self._at += count
        return taken

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def read(self, strict: bool) -> str:
        out, quantified = [], False
        while self._at < len(self._pattern):
            char = self._take()
            if char == "+" and quantified and strict:
                raise self._refuse("a possessive quantifier", "write (?:...)+ for a repeat")
            was, quantified = quantified, char in "*+?}"
            if char == "?" and was:
                quantified = False  # a lazy quantifier
            if char == "\\":
                out.append(self._escape(_OUTSIDE))
            elif char == "[":
                out.append(self._set())
            elif char == "(" and self._next() == "?" and strict:
                if self._pattern[self._at + 1 : self._at + 2] not in (":", "P"):
                    raise self._refuse(
                        "a flag or a look-around", "only (?:...) groups are supported"
                    )
                out.append(char)
            else:
                out.append(char)
        return "".join(out)

    def _escape(self, classes: dict[str, str]) -> str:
        char = self._take()
        if char in ("<", ">"):  # a word's border in Rust
            return char
        return classes.get(char, "\\" + char)

    def _set(self) -> str:
        out = ["["]
        classes = _IN_CLASS
        if self._next() == "^":
            out.append(self._take())
            classes = _IN_NEGATED
        first = True
        while self._at < len(self._pattern):
            if self._pattern[self._at : self._at + 2] in _DOUBLES:
                raise self._refuse("a doubled mark in [...]", "escape it")
            char = self._take()
            if char == "]" and not first:
                return "".join([*out, "]"])
            first = False
            if char == "\\":
                if self._next() in ("W", "S") or (classes is _IN_NEGATED and self._next() == "D"):
                    raise self._refuse(f"\\{self._next()} in [...]", "spell the characters out")
                out.append(self._escape(classes))
            else:
                out.append("\\" + char if char in "[]" else char)
        raise self._refuse("an open [", "close it")
