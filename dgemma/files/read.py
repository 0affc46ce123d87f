"""Reads files that somebody else may have made: no devices, no endless ones, no endless JSON.

Every file of a checkpoint is read here or checked here first. What goes wrong is an `OSError` or a
`ValueError` whose text is short and fit for a terminal; callers make it an error of their own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MIB = 1 << 20
MOST_JSON_BYTES = 16 * MIB
"""Of a JSON file with settings; a 26B checkpoint's largest has about 1 MiB."""
MOST_VALUES = 4_000_000
"""Of one JSON text; Gemma's tokenizer.json has about 1.6 million."""
MOST_TEXT_BYTES = 64 * MIB
"""Of a text file that a user names."""
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def exists(path: str | Path) -> bool:
    """Whether something is there; also for names that no file system takes."""
    return os.path.lexists(path)


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file, links followed.

    Raises:
        OSError: it is absent, or a directory, pipe, socket or device.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((text for test, text in _KINDS if test(status.st_mode)), "something else")
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, not a regular file", str(path))
    return status


def read_bytes(path: str | Path, most: int, *, streams: bool = False) -> bytes:
    """The content of a file.

    Args:
        most: bytes; a larger file is refused, and no more is ever read.
        streams: whether a pipe or device will do, as for a file that the user named.

    Raises:
        OSError: it cannot be read, is too large, or is no regular file.
    """
    if not streams:
        check_regular(path)
    # Without waiting for a writer, should the file have become a pipe in between.
    flags = os.O_RDONLY | (0 if streams else getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        if not streams and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data


def read_text(path: str | Path, most: int = MOST_JSON_BYTES) -> str:
    """The UTF-8 text of a file, without a byte order mark.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is broken, nested too deep, or has too many values or digits.
    """
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:  # the only other: an integer of thousands of digits
        raise ValueError("a number in it has too many digits") from error


def read_json(path: str | Path, most: int = MOST_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: see `read_bytes`.
        ValueError: see `parse_json`; or it is not UTF-8.
    """
    return parse_json(read_text(path, most))


def reason(error: Exception) -> str:
    """What an error of this module says, without the path, which the caller names."""
    return str((isinstance(error, OSError) and error.strerror) or error)
