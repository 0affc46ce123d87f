"""Messages as a person types or pastes them, or as a pipe brings them: one line each, or a block.

With the readline library a line can be edited, earlier ones come back with Up, and pasted lines
arrive as one message. Without it, lines that arrive together are one message. The history is in
memory only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from dgemma.cli.keys import HAS_MODES, PlainLines, more_waits
from dgemma.errors import InvalidRequest

QUOTES = '"""'
PROMPT, MORE = "> ", ". "


class Reader:
    """Reads one message after the other from standard input.

    Attributes:
        begun: whether the message that was interrupted had any text.
    """

    def __init__(self, *, talking: bool) -> None:
        """`talking`: standard input and output are a terminal."""
        self._talking = talking
        self._edited = _edit_lines() if talking else None
        self._plain = PlainLines() if talking and not self._edited and HAS_MODES else None
        self.begun = False

    def message(self) -> str | None:
        """The next message, without blanks around it; None: there are no more.

        Raises:
            InvalidRequest: a pipe brings bytes that are not text.
            KeyboardInterrupt: Ctrl-C; what was typed is dropped.
        """
        lines: list[str] = []
        self.begun = False
        try:
            lines.append(self._line(PROMPT))
            if lines[0].lstrip().startswith(QUOTES):
                return self._block(lines)
            while self._talking and self._more_waits():
                lines.append(self._line(""))
        except EOFError:
            if not lines:
                return None
        except KeyboardInterrupt:
            self.begun = bool(lines or self._typed())
            if self._plain:
                self._plain.drop()
            raise
        return "\n".join(lines).strip()

    def _typed(self) -> str:
        """The beginning of the next line, as far as it is known."""
        if self._plain:
            return self._plain.text()
        return self._edited() if self._edited else ""

    def _more_waits(self) -> bool:
        return bool(self._plain and self._plain.text()) or more_waits()

    def _line(self, prompt: str) -> str:
        try:
            if self._plain:
                return self._plain.line(prompt)
            return input(prompt if self._talking else "")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"standard input is not UTF-8 text: {error}") from error

    def _block(self, lines: list[str]) -> str:
        """A message between triple quotes, whose first line has come."""
        lines[0] = lines[0].lstrip().removeprefix(QUOTES)
        with contextlib.suppress(EOFError):
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(self._line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip()


def _edit_lines() -> Callable[[], str] | None:
    """Switch line editing on; returns a function that gives the line being edited."""
    try:
        import readline
    except ImportError:
        return None
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("tab: tab-insert")
        if os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
    return readline.get_line_buffer
