"""Progress of long work, on standard error: a line that is redrawn, or now and then a line.

Does not import torch, so a command can say what it does while torch is imported.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_EVERY_S, LINES = 15.0, 20
"""Where the line cannot be redrawn (a file, a pipe): the least time between two lines, and the most
lines about one part of the work."""
REDRAW_EVERY_S = 0.1


def amount(number: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def duration(seconds: float) -> str:
    """About how long, in the unit that a person would use."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_shown: list[Progress] = []
"""What stands in the terminal's last line."""


def clear_line() -> None:
    """Take a line of progress from the terminal, before another line is written."""
    for progress in _shown[:]:
        progress.clear()


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes log records on lines of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        clear_line()
        super().emit(record)


class Progress:
    """One line about work that goes on. At the end it disappears from a terminal.

    Elsewhere the first line appears after `LINE_EVERY_S`, so quick work prints nothing.

    Args:
        what: the work, such as "loading nano".
        at_most: whether the work may end before its total.
        show: how an amount reads.
    """

    def __init__(
        self, what: str, *, at_most: bool = False, show: Callable[[float], str] = "{:,.0f}".format,
        stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.stream = sys.stderr if stream is None else stream
        self.redraws = self.stream.isatty()
        self.clock, self.show, self.at_most = clock, show, at_most
        self.what, self.length = "", 0
        self.start(what)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def start(self, what: str) -> None:
        """Another part of the work, with an estimate of its own; a terminal shows it at once."""
        if what == self.what:
            return
        self.what, self.began = what, self.clock()
        self.last, self.told = self.began, 0.0
        if self.redraws:
            self._draw(f"{what} ...")

    def __call__(self, done: float, total: float) -> None:
        """So much of the total is done."""
        now = self.clock()
        if self.redraws:
            soon = now - self.last < REDRAW_EVERY_S and done < total
        else:
            soon = now - self.last < LINE_EVERY_S or done - self.told < total / LINES
        if soon:
            return
        self.last, self.told = now, done
        left = (now - self.began) * (total - done) / done if done else 0
        about = f", {'at most' if self.at_most else 'about'} {duration(left)} left" if left else ""
        most = " at most" if self.at_most else ""
        line = f"{self.what}: {self.show(done)} of{most} {self.show(total)}{about}"
        if self.redraws:
            self._draw(line)
        else:
            print(line, file=self.stream, flush=True)

    def part(self, what: str, done: float, total: float) -> None:
        """So much of one part of the work; a total of 0 is not known."""
        self.start(what)
        if total:
            self(done, total)

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        self.stream.write(f"\r{line.ljust(self.length)}")
        self.stream.flush()
        self.length = len(line)
        _shown[:] = [self]

    def clear(self) -> None:
        """Take the line from a terminal, so that other output begins at its left."""
        if self.redraws and self.length:
            self.stream.write(f"\r{' ' * self.length}\r")
            self.stream.flush()
            self.length = 0
            _shown.clear()
