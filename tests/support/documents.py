"""Reads the fenced blocks of a document, and compares what they print with what the page shows.

A `python` block that is directly followed by a `text` block prints that text. A `console` block has
commands, each after `$ ` (and `> ` on further lines), and below each what it prints. Blanks at the
ends of lines do not count; a line `...` stands for any number of lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
MARK = "---- end of block ----"
"""What runs between two blocks or commands prints this line."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `shown` is the text of a `text` block directly below a `python` block."""

    language: str
    body: str
    shown: str | None = None


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page's text."""
    found = list(FENCE.finditer(page))
    out = []
    for match, after in zip_longest(found, found[1:]):
        shown = None
        if match[1] == "python" and after and after[1] == "text" and after.start() == match.end():
            shown = after[2]
        out.append(Block(match[1], match[2], shown))
    return out


def python_program(snippets: Sequence[Block]) -> str:
    """One program of blocks that share their names; it marks where the output of each ends."""
    return "".join(f"{block.body}\nprint({MARK!r}, flush=True)\n" for block in snippets)


def commands(console: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that the page shows."""
    assert console.body.startswith("$ "), f"no command in: {console.body}"
    out = []
    for part in re.split(r"^\$ ", console.body, flags=re.MULTILINE)[1:]:
        first, *rest = part.splitlines()
        lines = [first]
        while rest and rest[0].startswith("> "):
            lines.append(rest.pop(0).removeprefix("> "))
        out.append(("\n".join(lines), "\n".join(rest)))
    return out


def shell_program(console: Block) -> str:
    """One script of all commands of a block; it marks where the output of each ends."""
    return "".join(f"{command}\nprintf '%s\\n' '{MARK}'\n" for command, _ in commands(console))


def parts(printed: str) -> list[str]:
    """What each block or command of a program printed."""
    return printed.split(f"{MARK}\n")[:-1]


def difference(shown: str, printed: str) -> str:
    """How the output departs from the text on the page; empty: it does not."""
    wanted, got = (
        [line.rstrip() for line in text.rstrip().splitlines()] for text in (shown, printed)
    )
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in wanted)
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in got)):
        return ""
    return "\n".join(difflib.unified_diff(wanted, got, "on the page", "printed", lineterm=""))
