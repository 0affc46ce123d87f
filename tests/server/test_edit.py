"""The sections of an editor's message. The routes on them are in `test_fim.py`."""

from __future__ import annotations

import pytest

from dgemma.errors import InvalidRequest
from dgemma.server.apis.edit.sections import read_next_edit, read_update
from tests.support.bodies import MESSAGE


def test_a_next_edit_message_is_read() -> None:
    """Catches a region that is off by a tag or a line break: the wrong code would be replaced."""
    found = read_next_edit(MESSAGE)
    assert found.file == "import a\ndef f():\n    return a.x\nf()"
    assert found.file[found.start : found.end] == "def f():\n    return a.x"
    assert found.cursor is not None and found.file[found.cursor :].startswith("a.x")
    assert (found.path, found.history) == ("current_file_path: b.py", "-y = 1\n+y = 2")
    assert "code_snippet_file_path: a.py" in found.snippets


@pytest.mark.parametrize("tag", [
    "recently_viewed_code_snippets", "current_file_content", "code_to_edit", "edit_diff_history",
])  # fmt: skip
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_missing_tag_is_named(tag: str, slash: str) -> None:
    """Catches a malformed message that is half read: code would be written over other code."""
    gone = f"<|{slash}{tag}|>"
    with pytest.raises(InvalidRequest, match="is missing") as caught:
        read_next_edit(MESSAGE.replace(gone, ""))
    assert gone in str(caught.value)


def test_a_tag_that_comes_twice_is_refused() -> None:
    """Catches the first of two regions, or of two cursors, being taken for the one meant."""
    for tag in ("<|code_to_edit|>", "<|cursor|>", "<|/edit_diff_history|>"):
        with pytest.raises(InvalidRequest, match="comes twice"):
            read_next_edit(MESSAGE.replace(tag, tag * 2))
    backwards = "<|/original_code|>a<|original_code|> <|update_snippet|>b<|/update_snippet|>"
    with pytest.raises(InvalidRequest, match=r"before <\|original_code\|>"):
        read_update(backwards)


def test_an_empty_region_and_no_cursor() -> None:
    """Catches an empty region that takes a line break of the file with it, and a made-up cursor."""
    text = MESSAGE.replace("def f():\n    return <|cursor|>a.x\n", "").replace("import a\n", "")
    found = read_next_edit(text)
    assert (found.file, found.start, found.end, found.cursor) == ("\nf()", 0, 0, None)


def test_an_apply_message_is_read() -> None:
    """Catches sections that are swapped or trimmed of their indentation."""
    found = read_update(
        "<|original_code|>\n  a\n<|/original_code|>\n<|update_snippet|>\n  b\n<|/update_snippet|>"
    )
    assert (found.original, found.snippet) == ("  a", "  b")
