"""Text as a terminal shows it: how many columns it takes, and how it breaks into rows.

Terminals disagree about some characters, so whoever draws rows switches automatic wrapping off.
"""

from __future__ import annotations

import re
import unicodedata

STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""A change of colour or weight; it takes no room."""
TAB = 8
WIDENS = "\ufe0f"
"""It asks for a wide picture of the character before it."""
UNSHOWN = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """A model's text without characters that would steer the terminal."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(
        UNSHOWN if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def cell_width(char: str) -> int:
    """Columns of one character: 0, 1 or 2; where terminals differ, the greater number."""
    if char < "\x7f":
        return 1
    if char == WIDENS:
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def width(line: str) -> int:
    """Columns of a line without its styles."""
    return sum(map(cell_width, STYLE.sub("", line)))


def rows(text: str, columns: int) -> list[str]:
    """The rows that a text fills on a terminal of so many columns, each with its styles."""
    return [row for line in text.split("\n") for row in _broken(line, columns)]


def _broken(line: str, columns: int) -> list[str]:
    if len(line) <= columns and line.isascii() and line.isprintable():
        return [line]
    out, row, used, at = list[str](), list[str](), 0, 0
    while at < len(line):
        if style := STYLE.match(line, at):
            row.append(style[0])
            at = style.end()
            continue
        char = line[at]
        if char == "\t":
            char = " " * min(TAB - used % TAB, max(1, columns - used))
        needs = len(char) if char.isspace() and char.isascii() else cell_width(char)
        if used and used + needs > columns:
            out.append("".join(row))
            row, used = [], 0
        row.append(char)
        used += needs
        at += 1
    return [*out, "".join(row)]
