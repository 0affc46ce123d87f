"""Markdown by name: a table, a block of code, a list or a document, as a grammar in Lark.

Text of the user gets into a grammar only as a quoted literal, never as syntax. Knows nothing about
tokens. Source: CommonMark 0.31, sections 4.5 and 4.6; tables of GitHub's Markdown, section 4.10.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dgemma.constrain.limits import CELLS, COLUMNS, ITEMS, NAME
from dgemma.errors import InvalidRequest, bad_field, nearest, short

MOST_FREE_COLUMNS = 8
"""Columns of a table whose columns are not named."""

_BREAK = r"\x00-\x08\x0a-\x1f\x7f\u0085\u2028\u2029"
"""What some reader takes for the end of a line, and other controls but for the tab."""
_SPACE = rf"\s{_BREAK}"
_ANY = rf"[^{_BREAK}]"
_CELL_EDGE = rf"([^|\\{_SPACE}]|\\[^{_SPACE}])"
_CELL = rf"{_CELL_EDGE}(([^|\\\t{_BREAK}]|\\[^\t{_BREAK}])*{_CELL_EDGE})?"
"""A cell: a bar has a backslash before it."""
_ITEM = rf"/(`{{1,2}}|~{{1,2}})?[^`~{_SPACE}]({_ANY}*[^{_SPACE}])?/ & ~/[- ]*/"
"""A line of a list: it opens no fence, and is no rule across the page (`- --`)."""
_CODE = (
    rf"( {{0,3}}`{{0,2}}([^` {_BREAK}]{_ANY}*)?| {{0,3}}`{{1,2}} {_ANY}*| {{4}}{_ANY}*)\n"
)  # fmt: skip
"""A line of code: after at most three blanks it has no fence, which would end the block."""
_LANGUAGE = "[0-9A-Za-z_+#.-]{0,24}"
_FENCE = "```"

_TABLE_ENDS = (" |", "|", "\n", "…", "---")
_LIST_ENDS = ("\n", "…")
_FENCE_ENDS = (_FENCE, f"\n{_FENCE}", "\n")


class Structure(NamedTuple):
    """A structure before it is compiled.

    Attributes:
        lark: its grammar.
        closing: texts that lead to an end; see `completion.shortest`.
    """

    lark: str
    closing: Sequence[str]


def structure_of(text: str) -> Structure:
    """The grammar of a structure.

    Args:
        text: `table:NAME,NAME;rows=2-5`, `fence:LANGUAGE`, `list:COUNT`, `numbered:COUNT` or
            `document`; all after the first word may be left out.

    Raises:
        InvalidRequest: an unknown word, or a part that is not as it must be.
    """
    name = re.split("[:;]", text, maxsplit=1)[0]
    if name not in STRUCTURES:
        known = ", ".join(STRUCTURES)
        raise _refused(f"{short(name)} is not known{nearest(name, STRUCTURES)}; use {known}")
    return STRUCTURES[name](text[len(name) :])


def _table(rest: str) -> Structure:
    """A table; its first two lines are known if its columns are."""
    columns, *options = _split(rest, ";")
    low, most = 1, None
    for option in options:
        key, _, value = option.strip().partition("=")
        if key != "rows" or len(options) > 1:
            raise _refused(f"has {short(option)} after the columns; write rows=COUNT once")
        low, most = _count(value, "rows")
    rows = _repeat('("\\n" ROW{n})', low, most)
    if not columns:
        return Structure(_free_table(rows), _TABLE_ENDS)
    names = [_name(one, "a column's name") for one in _split(columns[1:], ",")]
    COLUMNS.check(len(names), "structure")
    CELLS.check(len(names) * low, "structure")
    head = "".join(f"| {name} " for name in names) + "|\n" + "| --- " * len(names) + "|"
    count = str(len(names))
    lark = f"start: {json.dumps(head)} {rows}\n".replace("ROW{n}", "ROW") + _row("ROW", count)
    return Structure(lark, _TABLE_ENDS)


def _free_table(rows: str) -> str:
    """A table of any columns, with the same number in all rows."""
    counts = range(1, MOST_FREE_COLUMNS + 1)
    lines = ["start: " + " | ".join(f"table{n}" for n in counts) + "\n"]
    for n in counts:
        lines += [
            f'table{n}: HEAD{n} "\\n" RULE{n} {rows}\n'.replace("{n}", str(n)),
            rf"HEAD{n}: /(\| {_CELL} ){{{n}}}\|/" + "\n",
            rf"RULE{n}: /(\| :?-{{3,}}:? ){{{n}}}\|/" + "\n",
            _row(f"ROW{n}", str(n)),
        ]
    return "".join(lines)


def _row(name: str, columns: str) -> str:
    """A row of values, any of which may be empty."""
    return rf"{name}: /(\| ({_CELL} )?){{{columns}}}\|/" + "\n"


def _fence(rest: str) -> Structure:
    """A block of code."""
    if rest[:1] == ";":
        raise _refused("fence takes a language alone; write fence:LANGUAGE")
    language = f'"{_FENCE}" /{_LANGUAGE}\\n/'
    if rest:
        language = json.dumps(f"{_FENCE}{_name(rest[1:], 'a language', barred='`')}\n")
    return Structure(f'start: {language} CODE* "{_FENCE}"\nCODE: /{_CODE}/\n', _FENCE_ENDS)


def _list(rest: str) -> Structure:
    """A list with bullets."""
    low, most = _items(rest, "list")
    more = _repeat('("\\n- " ITEM)', low - 1, most - 1)
    return Structure(f'start: "- " ITEM {more}\nITEM: {_ITEM}\n', _LIST_ENDS)


def _numbered(rest: str) -> Structure:
    """A list whose numbers count up from 1."""
    low, most = _items(rest, "numbered")
    rules = ['start: "1. " ITEM ' + _next(1, low, most)]
    rules += [f'item{n}: "\\n{n}. " ITEM ' + _next(n, low, most) for n in range(2, most + 1)]
    return Structure("".join(rules) + f"ITEM: {_ITEM}\n", _LIST_ENDS)


def _next(n: int, low: int, most: int) -> str:
    """What comes after the item of a number."""
    return "\n" if n == most else f"item{n + 1}{'?' * (n >= low)}\n"


def _document(rest: str) -> Structure:
    """Any text; fences begin at the start of a line, and all of them are closed.

    Outside of them no line has a fence in it (in a list it would end where the list does) or
    begins with HTML (within which a fence is text, and after which it is none).
    """
    if rest:
        raise _refused(f"document takes nothing after it, got {short(rest)}; leave it out")
    lark = (
        f'start: part (GAP part)* GAP?\npart: LINE | OPEN CODE* "{_FENCE}"\nGAP: /\\n+/\n'
        f"OPEN: /{_FENCE}[^`{_BREAK}]*\\n/\nCODE: /{_CODE}/\n"
        rf"LINE: /{_ANY}*[^{_SPACE}]{_ANY}*/ & ~/(?s:.*)(```|~~~)(?s:.*)/ & ~/ {{0,3}}<(?s:.*)/"
        "\n"
    )
    return Structure(lark, ("…", *_FENCE_ENDS))


STRUCTURES: dict[str, Callable[[str], Structure]] = {
    "table": _table, "fence": _fence, "list": _list, "numbered": _numbered, "document": _document,
}  # fmt: skip
"""The first word -> from what comes after it to the structure."""


def _items(rest: str, name: str) -> tuple[int, int]:
    """The least and the most items of a list."""
    if not rest:
        return 1, ITEMS.most
    if rest[0] == ";":
        raise _refused(f"{name} takes a count alone; write {name}:5 or {name}:2-5")
    return _count(rest[1:], "items")


def _count(text: str, what: str) -> tuple[int, int]:
    """A number, or two with a hyphen between them."""
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip(), re.ASCII)
    low, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= most:
        raise _refused(f"has {short(text)} as the number of {what}; write 5, or 2-5")
    ITEMS.check(most, "structure")
    return low, most


def _repeat(group: str, low: int, most: int | None) -> str:
    """A group with its repeats; most: None: no end."""
    if most == 0:
        return ""
    return f"{group}{{{low},{'' if most is None else most}}}"


def _split(text: str, mark: str) -> list[str]:
    """The parts between marks; a mark after a backslash is text, and so is a second backslash."""
    parts, start = list[str](), 0
    for found in re.finditer(r"\\[\\,;]|[,;]", text):
        if found[0] == mark:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def _name(text: str, what: str, barred: str = "|") -> str:
    """A text that stands in the answer as it is."""
    name = text.strip()
    if barred == "|":
        name = re.sub(r"\\([\\,;])", r"\1", name)
    if not name:
        raise _refused(f"has {what} that is empty; leave out a comma, or write \\, for one")
    for mark in name:
        if mark == barred or unicodedata.category(mark) in ("Cc", "Zl", "Zp"):
            raise _refused(f"has {short(mark)} in {what}, {short(name)}; leave it out")
    NAME.check(len(name), "structure")
    return name


def _refused(why: str) -> InvalidRequest:
    return bad_field("structure", why)
