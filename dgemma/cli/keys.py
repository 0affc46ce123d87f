"""The keyboard of a terminal: what waits to be read, and what is typed while an answer is drawn."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

try:
    import termios
except ImportError:  # not on Windows
    termios = None  # type: ignore[assignment]

HAS_MODES = termios is not None
"""Whether this system's terminals have modes that can be switched."""
TOGETHER_S = 0.03
"""Lines of one paste follow each other within this time."""


class PlainLines:
    """Lines from a terminal without an editing library.

    It keeps what it has read beyond a line, so that it knows whether more waits.
    """

    def __init__(self) -> None:
        self._rest = b""

    def text(self) -> str:
        """What was read and belongs to no line yet."""
        return self._rest.decode(errors="replace")

    def line(self, prompt: str) -> str:
        """The next line, like `input`."""
        print(prompt, end="", flush=True)
        while b"\n" not in self._rest:
            data = os.read(sys.stdin.fileno(), 4096)
            if not data and not self._rest:
                raise EOFError
            if not data:
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(sys.stdin.encoding, sys.stdin.errors or "strict")

    def drop(self) -> None:
        """Forget what was read and belongs to no line yet."""
        self._rest = b""


def more_waits() -> bool:
    """Whether more was typed or pasted already, even if only the beginning of a line."""
    if termios is None:
        return False
    with _local_modes(off=termios.ICANON):
        return bool(select.select([sys.stdin.fileno()], [], [], TOGETHER_S)[0])


@contextlib.contextmanager
def unseen_keys() -> Iterator[None]:
    """What is typed meanwhile is kept for the next message, but not shown.

    Ctrl-C also keeps it, and the output on its way: a drawing of which a part is lost could not be
    replaced any more.
    """
    if termios is None:
        yield
        return
    with _local_modes(off=termios.ECHO, on=termios.NOFLSH):
        yield


@contextlib.contextmanager
def _local_modes(off: int = 0, on: int = 0) -> Iterator[None]:
    """The terminal with some of its modes switched, if standard input is one."""
    if not sys.stdin.isatty():
        yield
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    changed = [*before]
    changed[3] = changed[3] & ~off | on
    termios.tcsetattr(keys, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)
