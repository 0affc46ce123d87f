"""A reader of Markdown's blocks, line by line, apart from the grammars that it judges.

Source: CommonMark 0.31, sections 4.1 and 4.5; tables of GitHub's Markdown, section 4.10.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache

from dgemma.matcher import Matcher
from dgemma.text.token_table import token_table_of
from dgemma.text.tokenizer import Tokenizer

MARKS = b"`~|-\\ \n<*#1."
"""Bytes that mean something in Markdown."""


def cells(line: str) -> list[str]:
    """The cells of a row of a table, bars that are escaped as they are."""
    found, escaped = [""], False
    for mark in line:
        if mark == "|" and not escaped:
            found.append("")
        else:
            found[-1] += mark
        escaped = mark == "\\" and not escaped
    assert found[0] == "" == found.pop(), f"a row begins and ends with a bar: {line!r}"
    return [one.strip() for one in found[1:]]


def table(text: str) -> list[list[str]]:
    """The rows of a table, its head first; every row has as many cells as the head."""
    head, rule, *rows = [cells(line) for line in text.splitlines()]
    assert all(re.fullmatch(":?-{3,}:?", one) for one in rule), text
    assert {len(row) for row in (rule, *rows)} == {len(head)}, text
    return [head, *rows]


def fenced(text: str) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The blocks of code (language, lines), and the lines beside them; all blocks are closed."""
    blocks, beside, inside = list[tuple[str, list[str]]](), list[str](), False
    for line in text.splitlines():
        fence = re.match(r" {0,3}```", line)
        if inside and fence:
            assert not line[fence.end() :].strip(" "), f"text behind the closing fence: {line!r}"
            inside = False
        elif inside:
            blocks[-1][1].append(line)
        elif fence:
            inside = True
            blocks.append((line[fence.end() :], []))
        else:
            beside.append(line)
    assert not inside, f"a block is open: {text!r}"
    return blocks, beside


def items(text: str, *, numbered: bool) -> list[str]:
    """The items of a flat list; its numbers count up from 1."""
    found = []
    for count, line in enumerate(text.splitlines(), 1):
        mark = f"{count}. " if numbered else "- "
        assert line.startswith(mark), (count, text)
        assert not re.fullmatch(r"-[- ]*-[- ]*-[- ]*", line), f"a rule across the page: {line!r}"
        found.append(line[len(mark) :])
        assert found[-1].strip() == found[-1] != "", text
        assert not found[-1].startswith(("```", "~~~")), text
    return found


def _columns(*wanted: str) -> Callable[[str], None]:
    def judge(text: str) -> None:
        head, *rows = table(text)
        assert rows and (not wanted or head == [*wanted]), text

    return judge


def _items(low: int, most: int, numbered: bool = False) -> Callable[[str], None]:
    def judge(text: str) -> None:
        assert low <= len(items(text, numbered=numbered)) <= most, text

    return judge


def _block(*language: str) -> Callable[[str], None]:
    def judge(text: str) -> None:
        ((named, _),), beside = fenced(text)
        assert not beside and (not language or named == language[0]), text

    return judge


def _document(text: str) -> None:
    _, beside = fenced(text)
    assert not any("```" in line or "~~~" in line for line in beside), text


STRUCTURES: dict[str, Callable[[str], None]] = {
    "table:Name,Age": _columns("Name", "Age"), "table": _columns(), "table;rows=2-3": _columns(),
    "table:a\\, b,%import;rows=3": _columns("a, b", "%import"), "fence": _block(),
    "fence:python": _block("python"), "list": _items(1, 200), "list:3": _items(3, 3),
    "numbered": _items(1, 200, numbered=True), "numbered:2-4": _items(2, 4, numbered=True),
    "document": _document,
}  # fmt: skip
"""Structure -> the judge of its texts."""


@cache
def _marks(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of marks alone."""
    table = token_table_of(tokenizer).table
    return frozenset(n for n, text in enumerate(table) if text and set(text) <= set(MARKS))


def marked_walk(
    matcher: Matcher, tokenizer: Tokenizer, draw: random.Random, most: int
) -> list[int]:
    """Ids that the matcher allowed and took; most of them are marks of Markdown."""
    letters, marks, ids = token_table_of(tokenizer), _marks(tokenizer), list[int]()
    while len(ids) < most:
        allowed = letters.ids(matcher.allowed())
        if not len(allowed):
            break
        liked = sorted(marks & set(allowed.tolist())) if draw.random() < 0.75 else []
        ids.append(draw.choice(liked) if liked else int(draw.choice(allowed)))
        assert matcher.accept(ids[-1:]) == 1, "an allowed id was not taken"
    return ids
