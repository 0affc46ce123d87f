"""A small terminal: what a person sees after a program has written its text and its controls.

It knows what the live view and line editors use: line feeds, returns, the cursor up, left and
right, clearing, inserting and deleting, automatic wrapping, styles, and characters of 0, 1 and 2
columns. Any other control sequence is an error.
"""

from __future__ import annotations

import io
import re
import unicodedata

CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z@])|\x1b\][^\x07]*\x07")
BEGUN = re.compile(r"\x1b(\[\??[\d;]*|\][^\x07]*)?")
IGNORED_MODES = {"2004", "25", "1034"}
"""Bracketed paste, the cursor's looks, the meta key: they do not change what is shown."""
Cell = tuple[str, str]
"""A character with the marks on it, and the style that it was written in."""
BLANK: Cell = (" ", "")


def columns_of(char: str) -> int:
    """Columns that this terminal gives a character."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Terminal(io.StringIO):
    """A terminal that a test writes to as to a file; `lines()` is what is on the screen."""

    def __init__(self, columns: int = 80, height: int = 24) -> None:
        super().__init__()
        self.columns, self.height = columns, height
        self.rows: list[list[Cell]] = [[]]
        self.above: list[list[Cell]] = []  # rows that have left at the top
        self.row = self.column = 0
        self.wraps = True
        self.style = ""
        self.begun = ""

    def isatty(self) -> bool:
        """It is one."""
        return True

    def fileno(self) -> int:
        """A number that no file has; whoever asks for its size is given that by a patch."""
        return -1

    def write(self, text: str) -> int:
        """Show a text; a control sequence may come in pieces."""
        text, self.begun = self.begun + text, ""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                match = CONTROL.match(text, at)
                if match is None and BEGUN.fullmatch(text, at):
                    self.begun = text[at:]
                    break
                assert match, f"unknown control sequence: {text[at : at + 9]!r}"
                self._control(match)
                at = match.end()
            else:
                self._show(text[at])
                at += 1
        return super().write(text[: len(text) - len(self.begun)])

    def _control(self, match: re.Match[str]) -> None:
        private, given, kind = match[1], match[2] or "", match[3]
        if kind is None:  # a window's title
            return
        count = int(given) if given.isdigit() else 1
        row = self.rows[self.row]
        if kind == "m":
            self.style = "" if given in ("", "0") else f"{self.style};{given}".strip(";")
        elif private and kind in "hl":
            assert given == "7" or given in IGNORED_MODES, given
            self.wraps = kind == "h" if given == "7" else self.wraps
        elif kind == "A":
            self.row = max(0, self.row - count)
        elif kind in "CD":
            end = self.columns - 1
            self.column = min(end, max(0, self.column + (count if kind == "C" else -count)))
        elif kind in "JK":
            assert given in ("", "0")
            del row[self.column :]
            if kind == "J":
                del self.rows[self.row + 1 :]
        elif kind == "P":
            del row[self.column : self.column + count]
        elif kind == "@":
            row[self.column : self.column] = [BLANK] * count
        else:
            raise AssertionError(f"unknown control sequence: {match[0]!r}")

    def _show(self, char: str) -> None:
        if char == "\n":
            self.column = 0  # as terminals are set up, a line feed returns as well
            self._down()
        elif char == "\r":
            self.column = 0
        elif char == "\b":
            self.column = max(0, min(self.column, self.columns - 1) - 1)
        elif char == "\a":
            pass
        else:
            assert char >= " " and char != "\x7f", f"a control character: {char!r}"
            self._put(char, columns_of(char))

    def _put(self, char: str, wide: int) -> None:
        if self.column + wide > self.columns:
            if self.wraps:
                self.column = 0
                self._down()
            else:
                self.column = self.columns - wide
        row = self.rows[self.row]
        if not wide:
            if row and self.column:
                row[self.column - 1] = (row[self.column - 1][0] + char, row[self.column - 1][1])
            return
        row += [BLANK] * (self.column - len(row))
        row[self.column : self.column + wide] = [(char, self.style), ("", self.style)][:wide]
        self.column += wide

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])
        if self.row == self.height:
            self.above.append(self.rows.pop(0))
            self.row -= 1

    def resize(self, columns: int, height: int) -> None:
        """Another size; rows that are too long now are broken, as most terminals do."""
        self.columns, self.height = columns, height
        broken: list[list[Cell]] = []
        for number, row in enumerate(self.rows):
            pieces = [row[at : at + columns] for at in range(0, len(row), columns)] or [[]]
            broken += pieces
            if number == self.row:
                at = max(0, min(self.column, len(row)) - 1)
                self.row = len(broken) - len(pieces) + at // columns
                self.column = at % columns + (1 if self.column else 0)
                found = self.row
        self.row = found
        self.rows = broken
        while len(self.rows) > height:
            self.above.append(self.rows.pop(0))
            self.row -= 1

    def lines(self) -> list[str]:
        """The rows on the screen, without blanks at their ends."""
        return ["".join(char for char, _ in row).rstrip() for row in self.rows]

    def everything(self) -> list[str]:
        """The same with the rows above it, which a person can scroll back to."""
        return ["".join(char for char, _ in row).rstrip() for row in (*self.above, *self.rows)]

    def styles(self, text: str) -> list[str]:
        """The styles of the characters of a text where it first stands on the screen."""
        for row in self.rows:
            at = "".join(char for char, _ in row).find(text)
            if at >= 0:
                shown = [style for char, style in row if char]
                return shown[at : at + len(text)]
        raise AssertionError(f"{text!r} is not on the screen: {self.lines()}")
