"""Counts the steps that a backtracking engine takes with an expression of Python's `re`.

Walks the parse tree as `re` does: one way after another, from each place of the text on, without
the shortcuts that `re` has for some of them. Also finds the expressions of a package by its syntax
trees.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

Go = Callable[[int], int | None]
"""What comes after: from a place to the place where the match ends, or None."""


class Steps:
    """One search through one text."""

    def __init__(self, pattern: str, flags: int, text: str) -> None:
        self.tree = _parser.parse(pattern, flags)
        self.flags, self.text, self.count = self.tree.state.flags, text, 0

    def find_all(self, stops: Collection[str] = (), *, gaps: bool = True) -> int:
        """The steps of all matches, as by `finditer`; it ends at one of `stops`.

        Args:
            gaps: go on after a place where nothing matches.
        """
        at = 0
        while at <= len(self.text):
            end = self.sequence(list(self.tree), at, lambda place: place)
            if end is not None and self.text[at:end] in stops:
                break
            if end is None and not gaps:
                break
            at = at + 1 if end is None or end == at else end
        return self.count

    def match(self) -> int:
        """The steps of a match at the beginning that must reach the end."""
        self.sequence(list(self.tree), 0, lambda at: at if at == len(self.text) else None)
        return self.count

    def sequence(self, items: list[Any], at: int, go: Go) -> int | None:
        """Match items in a row, then what comes after."""
        if not items:
            return go(at)
        rest = items[1:]
        return self.item(items[0], at, lambda place: self.sequence(rest, place, go))

    def item(self, item: tuple[Any, Any], at: int, go: Go) -> int | None:
        """Match one item, then what comes after."""
        self.count += 1
        code, value = item
        if self.one(code):
            return go(at + 1) if at < len(self.text) and self.takes(item, at) else None
        if code is op.AT:
            return go(at) if self.at(value, at) else None
        if code is op.SUBPATTERN:
            return self.sequence(list(value[3]), at, go)
        if code is op.ATOMIC_GROUP:
            end = self.sequence(list(value), at, lambda place: place)
            return None if end is None else go(end)
        if code is op.BRANCH:
            for branch in value[1]:
                if (end := self.sequence(list(branch), at, go)) is not None:
                    return end
            return None
        if code in (op.ASSERT, op.ASSERT_NOT):
            low = at - value[1].getwidth()[0] if value[0] < 0 else at
            found = low >= 0 and self.sequence(list(value[1]), low, lambda place: place) is not None
            return go(at) if found == (code is op.ASSERT) else None
        least, most, body = value
        inner = list(body)
        if len(inner) == 1 and self.one(inner[0][0]):
            return self.run(code, least, most, inner[0], at, go)
        return self.repeat(code, least, most, inner, at, go)

    def run(self, code: Any, least: int, most: Any, one: Any, at: int, go: Go) -> int | None:
        """A repeat of a single character."""
        places = [at]
        lazy = code is op.MIN_REPEAT
        while len(places) <= most and places[-1] < len(self.text):
            if lazy and len(places) > least and (end := go(places[-1])) is not None:
                return end
            self.count += 1
            if not self.takes(one, places[-1]):
                break
            places.append(places[-1] + 1)
        if code is op.POSSESSIVE_REPEAT:
            return go(places[-1]) if len(places) > least else None
        for place in reversed(places[least:] if not lazy else places[-1:]):
            self.count += 1
            if (end := go(place)) is not None:
                return end
        return None

    def repeat(
        self, code: Any, least: int, most: Any, body: list[Any], at: int, go: Go
    ) -> int | None:
        """A repeat of anything."""
        if code is op.POSSESSIVE_REPEAT:
            done = 0
            while done < most:
                end = self.sequence(body, at, lambda place: place)
                if end is None or end == at:
                    break
                at, done = end, done + 1
            return go(at) if done >= least else None

        def again(place: int, done: int) -> int | None:
            self.count += 1
            if code is op.MIN_REPEAT and done >= least and (end := go(place)) is not None:
                return end
            if done < most:
                end = self.sequence(
                    body, place,
                    lambda to: again(to, done + 1) if to > place or done < least else None,
                )  # fmt: skip
                if end is not None:
                    return end
            return go(place) if code is not op.MIN_REPEAT and done >= least else None

        return again(at, 0)

    def one(self, code: Any) -> bool:
        """Whether an item takes exactly one character."""
        return code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)

    def takes(self, item: tuple[Any, Any], at: int) -> bool:
        """Whether such an item takes the character at a place."""
        code, value = item
        letter = self.text[at]
        if code is op.ANY:
            return letter != "\n" or bool(self.flags & re.DOTALL)
        if code is op.LITERAL:
            return ord(letter) == value
        if code is op.NOT_LITERAL:
            return ord(letter) != value
        negated = value[0][0] is op.NEGATE
        return negated != any(_in(part, letter) for part in value[negated:])

    def at(self, value: Any, at: int) -> bool:
        """Whether an anchor holds."""
        text, many = self.text, self.flags & re.MULTILINE
        if value in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return at == 0 or bool(many and value is op.AT_BEGINNING and text[at - 1] == "\n")
        if value in (op.AT_END, op.AT_END_STRING):
            return at == len(text) or (value is op.AT_END and text[at] == "\n")
        before, after = (_word(text[k : k + 1] if k >= 0 else "") for k in (at - 1, at))
        return (before != after) == (value is op.AT_BOUNDARY)


def _word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def _in(part: tuple[Any, Any], letter: str) -> bool:
    code, value = part
    if code is op.LITERAL:
        return ord(letter) == value
    if code is op.RANGE:
        return value[0] <= ord(letter) <= value[1]
    known = {"SPACE": letter.isspace(), "DIGIT": letter.isdigit(), "WORD": _word(letter)}
    name = str(value).removeprefix("CATEGORY_")
    return not known[name.removeprefix("NOT_")] if name.startswith("NOT_") else known[name]


def steps(pattern: str, flags: int, text: str, how: str, stops: Collection[str] = ()) -> int:
    """The steps of `re` on a text: of one "match", of matches side by side ("lex"), or of all."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        one = Steps(pattern, flags, text)
        return one.match() if how == "match" else one.find_all(stops, gaps=how != "lex")
    finally:
        sys.setrecursionlimit(before)


class Use(NamedTuple):
    """A call of `re` that brings an expression.

    Attributes:
        module: its file.
        source: the code of the expression.
        flags: the code of its flags.
    """

    module: str
    source: str
    flags: str


def uses(root: Path) -> Iterator[Use]:
    """Every such call in the files of a package."""
    calls = {
        "compile",
        "match",
        "fullmatch",
        "search",
        "sub",
        "subn",
        "split",
        "findall",
        "finditer",
    }
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr in calls
            ):
                given = node.args[1:] if node.func.attr == "compile" else []
                flags = ast.unparse(given[0]) if given else "0"
                yield Use(path.relative_to(root).as_posix(), ast.unparse(node.args[0]), flags)
