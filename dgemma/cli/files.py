"""Text files as commands read and write them: whole, in UTF-8, byte for byte, or not at all."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dgemma.errors import InvalidRequest, unreadable


def read_text(path: Path) -> str:
    """A file's text with its own line ends.

    Raises:
        InvalidRequest: it cannot be read or is not UTF-8.
    """
    return _decoded(path.read_bytes, str(path))


def _decoded(read: Callable[[], bytes], name: str) -> str:
    try:
        return read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(unreadable(name, error)) from error


def read_argument(text: str) -> str:
    """The text of an argument: itself, `-` for standard input, or `@FILE`."""
    if text == "-":
        return _decoded(sys.stdin.buffer.read, "standard input")
    return read_text(Path(text[1:])) if text.startswith("@") else text


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: it is the old one or the new one, whatever happens.

    A pipe, a device and the command's own output are written into, as there is nothing to replace.

    Raises:
        InvalidRequest: it cannot be written; the old one is as it was.
    """
    temporary = None
    try:
        old = _status(path)
        if old is not None and (not stat.S_ISREG(old.st_mode) or _is_output(old)):
            with path.open("ab") as file:
                file.write(text.encode("utf-8"))
            return
        target = path.resolve()  # a link stays a link
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644 if old is None else old.st_mode & 0o7777)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InvalidRequest(f"{path} cannot be written: {error}") from error


def _status(path: Path) -> os.stat_result | None:
    """The status of a path's target; None if there is nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_output(status: os.stat_result) -> bool:
    """Whether a file is this process's own standard output or error, under whatever name."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(status, os.fstat(number)):
                return True
    return False


def diff(old: str, new: str, name: str) -> str:
    """A unified diff; empty if nothing changes. Lines end at line feeds, as for `patch`."""
    lines = difflib.unified_diff(
        list(io.StringIO(old)), list(io.StringIO(new)), f"a/{name}", f"b/{name}"
    )
    out = []
    for line in lines:
        out.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(out)


def deliver(path: Path | None, old: str, new: str, *, show: bool) -> None:
    """Print a diff, or write the file if it changes."""
    if show:
        sys.stdout.write(diff(old, new, path.name if path else "text"))
    elif path is not None and new != old:
        write_text(path, new)
