"""The sections of an editor's message: `<|name|>` to `<|/name|>`, as Mercury's clients write them.

Knows tags and the texts between them. Knows nothing about HTTP, models or how an edit is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dgemma.errors import InvalidRequest

CURSOR = "<|cursor|>"
_PATH = re.compile(r"\A\s*current_file_path:[^\n]*(?:\n|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextEdit:
    """What an editor tells about a place where an edit is due.

    Attributes:
        snippets: code that was looked at lately, with the paths of its files.
        path: the line that names the file, "" where there is none.
        file: the file's text without tags.
        start, end: characters [start, end) of the region that may change.
        cursor: how many characters of `file` stand before the cursor; None: it is not told.
        history: the edits so far, as diffs.
    """

    snippets: str
    path: str
    file: str
    start: int
    end: int
    cursor: int | None
    history: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A file's text, and the new code that goes into it (what stays is left out)."""

    original: str
    snippet: str


def next_edit(text: str) -> NextEdit:
    """Read the message of a next-edit request.

    Raises:
        InvalidRequest: a section is missing, comes twice or is not closed; the message names it.
    """
    snippets = section(text, "recently_viewed_code_snippets")
    file = section(text, "current_file_content")
    history = section(text, "edit_diff_history")
    found = _PATH.match(file)
    path = found.group().strip() if found else ""
    file = file[found.end() :] if found else file
    region = section(file, "code_to_edit")
    if file.count(CURSOR) > 1:
        raise InvalidRequest(
            f"messages[0].content: {CURSOR} comes twice; there is one cursor",
            field="messages[0].content",
        )
    before, _, after = _around(file, "code_to_edit")
    tagged = before + region + after
    at = tagged.find(CURSOR)
    before, region, after = (part.replace(CURSOR, "") for part in (before, region, after))
    return NextEdit(
        snippets=snippets, path=path, file=before + region + after, start=len(before),
        end=len(before) + len(region), cursor=at if at >= 0 else None, history=history,
    )  # fmt: skip


def update(text: str) -> Update:
    """Read the message of an apply request.

    Raises:
        InvalidRequest: as above.
    """
    return Update(original=section(text, "original_code"), snippet=section(text, "update_snippet"))


def section(text: str, name: str) -> str:
    """What stands between `<|name|>` and `<|/name|>`, without the line breaks at the tags.

    Raises:
        InvalidRequest: one of the tags is missing, or comes twice.
    """
    return _around(text, name)[1]


def _around(text: str, name: str) -> tuple[str, str, str]:
    """The text before, in and behind a section."""
    opening, closing = f"<|{name}|>", f"<|/{name}|>"
    for tag in (opening, closing):
        count = text.count(tag)
        if count != 1:
            what = "is missing" if not count else "comes twice"
            raise InvalidRequest(
                f"messages[0].content: {tag} {what}; put the section between {opening} and "
                f"{closing}",
                field="messages[0].content",
            )
    before, _, rest = text.partition(opening)
    if closing in before:
        raise InvalidRequest(
            f"messages[0].content: {closing} stands before {opening}", field="messages[0].content"
        )
    inner, _, after = rest.partition(closing)
    return before, inner.removeprefix("\n").removesuffix("\n"), after
