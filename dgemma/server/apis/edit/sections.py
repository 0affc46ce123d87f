"""The sections of an editor's message: `<|name|>` to `<|/name|>`, as Mercury's clients write them.

Knows tags and the texts between them. Knows nothing about HTTP, models or how an edit is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dgemma.errors import bad_field

CONTENT, CURSOR = "messages[0].content", "<|cursor|>"
_PATH = re.compile(r"\A\s*current_file_path:[^\n]*(?:\n|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextEdit:
    """A place in a file where an edit is due.

    Attributes:
        snippets: code that was viewed lately, with the paths of its files.
        path: the line that names the file; "" if there is none.
        file: the file's text without tags.
        start, end: characters [start, end) of the region that may change.
        cursor: characters of `file` before the cursor; None: it is not given.
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
    """A file's text, and the new code that goes into it (with gaps for code that stays)."""

    original: str
    snippet: str


def read_next_edit(text: str) -> NextEdit:
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
    if file.count(CURSOR) > 1:
        raise bad_field(CONTENT, f"is malformed: {CURSOR} comes twice; keep one")
    before, region, after = _around(file, "code_to_edit")
    tagged = before + region + after
    at = tagged.find(CURSOR)
    before, region, after = (part.replace(CURSOR, "") for part in (before, region, after))
    return NextEdit(
        snippets=snippets, path=path, file=before + region + after, start=len(before),
        end=len(before) + len(region), cursor=at if at >= 0 else None, history=history,
    )  # fmt: skip


def read_update(text: str) -> Update:
    """Read the message of an apply request.

    Raises:
        InvalidRequest: the same.
    """
    original = section(text, "original_code")
    if not original.strip():
        raise bad_field(CONTENT, "has an empty section <|original_code|>; put the code there")
    return Update(original=original, snippet=section(text, "update_snippet"))


def section(text: str, name: str) -> str:
    """The text between `<|name|>` and `<|/name|>`, without the line breaks at the tags.

    Raises:
        InvalidRequest: one of the tags is missing, or comes twice.
    """
    return _around(text, name)[1]


def _around(text: str, name: str) -> tuple[str, str, str]:
    """The text before, in and after a section."""
    opening, closing = f"<|{name}|>", f"<|/{name}|>"
    for tag in (opening, closing):
        if (count := text.count(tag)) != 1:
            wrong = "comes twice" if count else "is missing"
            remedy = f"put the section between {opening} and {closing}"
            raise bad_field(CONTENT, f"is malformed: {tag} {wrong}; {remedy}")
    before, _, rest = text.partition(opening)
    if closing in before:
        raise bad_field(CONTENT, f"has {closing} before {opening}; put it after the section")
    inner, _, after = rest.partition(closing)
    return before, inner.removeprefix("\n").removesuffix("\n"), after
