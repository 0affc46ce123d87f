"""The server's log: its lines for people and for programs, and things that are said once a minute.

Knows the form of a line. Knows nothing about requests.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

log = logging.getLogger("dgemma.server")

EVERY_S = 60.0
"""Seconds in which the same kind of trouble is told once."""

LONGEST_PATH = 100
"""Characters of a path in the log."""


class Seldom:
    """Warnings that many clients may cause: one line a minute for each kind, with a count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._silent: Counter[str] = Counter()

    def warn(self, kind: str, message: str) -> None:
        """Log a message, unless one of its kind has been logged within the last minute."""
        now, last = self._clock(), self._told.get(kind)
        if last is not None and now - last < EVERY_S:
            self._silent[kind] += 1
            return
        self._told[kind] = now
        silent = self._silent.pop(kind, 0)
        log.warning("%s%s", message, f" ({silent} more since the last such line)" * bool(silent))


def shown_path(path: str) -> str:
    """A path as the log shows it: only printable ASCII, at most `LONGEST_PATH` characters."""
    return ascii(path[:LONGEST_PATH])[1:-1][:LONGEST_PATH]


def fields_of(record: logging.LogRecord) -> Mapping[str, Any] | None:
    """The fields of a request's line; None: it is another line."""
    return getattr(record, "fields", None)


class JSONLines(logging.Formatter):
    """Each line a JSON object with the time, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        when = datetime.fromtimestamp(record.created, UTC)
        fields = fields_of(record)
        if fields is None:
            fields = {"level": record.levelname.lower(), "message": super().format(record)}
        stamp = {"time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        return json.dumps({**stamp, **fields}, ensure_ascii=False)


class Readable(logging.Formatter):
    """The same for people, with the time of the day."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = fields_of(record)
        if fields is None:
            return f"{clock} {record.levelname.lower()}: {super().format(record)}"
        first = ("method", "path", "status", "ms")
        rest = [f"{k}={v}" for k, v in fields.items() if k not in (*first, "route") and v != ""]
        method, path, status, ms = (fields[name] for name in first)
        return " ".join([clock, f"{status} {method} {path} {ms} ms", *rest])


def set_format(stream: TextIO) -> None:
    """Give the handlers of a stream their form: readable in a terminal, else JSON lines."""
    form = Readable() if stream.isatty() else JSONLines()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.setFormatter(form)
