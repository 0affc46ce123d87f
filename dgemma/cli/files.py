"""Text files as commands read and write them: whole, in UTF-8, byte for byte, or not at all."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from dgemma.errors import InvalidRequest, unreadable
from dgemma.files.read import MOST_TEXT_BYTES, read_bytes
from dgemma.files.write import FileChanged, check_writable, replace_file


def read_text(path: Path) -> str:
    """A file's text with its own line ends.

    Raises:
        InvalidRequest: it cannot be read, is not UTF-8, or has more than `MOST_TEXT_BYTES`.
    """
    return _decoded(lambda: read_bytes(path, MOST_TEXT_BYTES, streams=True), str(path))


def _decoded(read: Callable[[], bytes], name: str) -> str:
    try:
        return read().decode("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(unreadable(name, error)) from error


def read_argument(text: str) -> str:
    """The text of an argument: itself, `-` for standard input, or `@FILE`."""
    if text == "-":
        return _decoded(_standard_input, "standard input")
    return read_text(Path(text[1:])) if text.startswith("@") else text


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_TEXT_BYTES:,} bytes")
    return data


def check_target(path: Path) -> None:
    """Refuse a file that `write_text` would refuse, before a model is loaded.

    Raises:
        InvalidRequest: it is read-only or cannot be made.
    """
    try:
        if not _is_stream(path):
            check_writable(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: Path, text: str, old: str | None = None) -> None:
    """Replace a file in one step: it is the old one or the new one, whatever happens.

    A pipe, a device and the command's own output are written into, as there is nothing to replace.

    Args:
        old: the text that was read from there; None: whatever is there may be replaced.

    Raises:
        InvalidRequest: it cannot be written, or changed since it was read; it is as it was.
    """
    try:
        if _is_stream(path):
            with path.open("ab") as file:
                file.write(text.encode("utf-8"))
            return
        replace_file(path, text.encode("utf-8"), None if old is None else old.encode("utf-8"))
    except FileChanged as error:
        raise InvalidRequest(f"{path} was changed by another program meanwhile") from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"{path} cannot be written: {error.strerror or error}")


def _is_stream(path: Path) -> bool:
    """Whether a path is written into, not replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(status.st_mode):
        return False
    return not stat.S_ISREG(status.st_mode) or _is_output(status)


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


def deliver(path: Path, old: str, new: str, *, show: bool, output: Path | None = None) -> None:
    """Print a diff, or write the file if it changes.

    Args:
        path: the file that `old` was read from.
        output: where to write instead.

    Raises:
        InvalidRequest: it cannot be written. The diff is printed then, so that the new text is not
            lost: `patch` applies it, also to a file that has changed elsewhere.
    """
    changes = diff(old, new, path.name)
    if show:
        sys.stdout.write(changes)
        return
    try:
        if output is not None:
            write_text(output, new)
        elif new != old:
            write_text(path, new, old)
    except InvalidRequest as error:
        sys.stdout.write(changes)
        raise InvalidRequest(f"{error}; the changes are printed, for `patch`") from error
