"""A program in a pseudo-terminal: a test types keys, and sees the screen as a person does."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence

from tests.support.terminal import CONTROL, Terminal

LIMIT_S = 120
"""A program that writes nothing for so long hangs."""
PAUSE_S = 0.5
"""Before an interrupt is typed."""
LEFT_OUT = {"NO_COLOR", "PYTHONUNBUFFERED"}
"""Python without buffers loses what a write that is interrupted leaves over."""
INTERRUPT, END, UP, LEFT, ENTER = "\x03", "\x04", "\x1b[A", "\x1b[D", "\r"


def pasted(text: str) -> str:
    """A text as terminals send a paste to a program that asked for brackets around it."""
    return f"\x1b[200~{text}\x1b[201~"


class Session:
    """A running program.

    Attributes:
        screen: what its terminal shows.
    """

    def __init__(self, process: subprocess.Popen[bytes], keys: int, screen: Terminal) -> None:
        self.screen = screen
        self._process, self._keys = process, keys
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._seen = ""  # written since the last text that was expected

    def expect(self, text: str) -> str:
        """Wait until the program has written a text; returns what came before it."""
        while text not in (plain := CONTROL.sub("", self._seen)):
            assert self._read(), f"the program ended without {text!r}: {self.screen.everything()}"
        before, _, self._seen = plain.partition(text)
        return before

    def send(self, keys: str) -> None:
        """Type; an interrupt a moment later, as a person does.

        Python's `input` looks for signals, then waits for a key. An interrupt that comes between
        the two is noticed at the next key.
        """
        if keys == INTERRUPT:
            time.sleep(PAUSE_S)
        os.write(self._keys, keys.encode())

    def ended(self) -> int:
        """Wait for the program's end; returns its exit code."""
        while self._read():
            pass
        return self._process.wait(LIMIT_S)

    def _read(self) -> bool:
        ready = select.select([self._keys], [], [], LIMIT_S)[0]
        assert ready, f"the program hangs: {self.screen.everything()}"
        try:
            data = os.read(self._keys, 65536)
        except OSError:  # the other side is closed
            return False
        text = self._text.decode(data)
        self.screen.write(text.replace("\r\n", "\n"))
        self._seen += text.replace("\r\n", "\n")
        return bool(data)


@contextlib.contextmanager
def session(
    words: Sequence[str], *, columns: int = 80, height: int = 24, **variables: str
) -> Iterator[Session]:
    """Python with these words, in a terminal of its own; killed in the end."""
    keys, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    environment = kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | variables

    def own_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.login_tty(there)

    process = subprocess.Popen(
        [sys.executable, *words], env=environment, preexec_fn=own_terminal,
        stdin=there, stdout=there, stderr=there,
    )  # fmt: skip
    os.close(there)
    try:
        yield Session(process, keys, Terminal(columns, height))
    finally:
        process.kill()
        process.wait()
        os.close(keys)
