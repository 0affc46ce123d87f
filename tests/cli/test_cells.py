"""The columns and rows of a text."""

from __future__ import annotations

import pytest

from dgemma.cli.cells import cell_width, clean, rows, width


@pytest.mark.fault("N 17")
def test_columns_of_characters() -> None:
    """Japanese is counted as narrow, or marks and joiners as characters of their own."""
    for char, columns in (("a", 1), ("é", 1), ("日", 2), ("。", 2), ("ｱ", 1), ("🙂", 2),
                          ("\u0301", 0), ("\u200d", 0), ("\x1b", 0), ("㒒", 2)):  # fmt: skip
        assert cell_width(char) == columns or char == "\x1b"
    assert width("\x1b[2m日本\x1b[0m!") == 5


def test_rows() -> None:
    """A wide character is cut in two at the edge, a style counts, or an empty line is lost."""
    assert rows("abcdef\n\ngh", 4) == ["abcd", "ef", "", "gh"]
    assert rows("日本語", 5) == ["日本", "語"]
    assert rows("a\x1b[2mbc\x1b[0md", 2) == ["a\x1b[2mb", "c\x1b[0md"]
    assert rows("e\u0301" * 3, 2) == ["e\u0301e\u0301", "e\u0301"]
    assert rows("a\tb", 80) == ["a       b"] and width(rows("a\tb", 3)[0]) <= 3
    assert rows("日", 1) == ["日"]  # there is no room for it anywhere


def test_no_control_character_reaches_the_terminal() -> None:
    """A model's text clears the screen, or moves the cursor."""
    assert clean("a\r\nb\tc") == "a\nb\tc"
    assert clean("\x1b[2J\x07\x9b1A\x7f日") == "�[2J��1A�日"
