"""Text files as commands read and write them: whole, in UTF-8, byte for byte, or not at all.

Knows nothing about what a command does with the text.
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from pathlib import Path

from dgemma.errors import InvalidRequest


def read_text(path: Path) -> str:
    """A file's text with its own line ends.

    Raises:
        InvalidRequest: it cannot be read or is no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read as UTF-8 text: {error}") from error


def read_argument(text: str) -> str:
    """The text of an argument: itself, `-` for standard input, or `@FILE`."""
    if text == "-":
        return sys.stdin.read()
    return read_text(Path(text[1:])) if text.startswith("@") else text


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: it is the old one or the new one, whatever happens.

    Raises:
        InvalidRequest: it cannot be written; the old one is as it was.
    """
    target = path.resolve()  # a link stays a link
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InvalidRequest(f"{path} cannot be written: {error}") from error


def diff(old: str, new: str, name: str) -> str:
    """A unified diff; empty where nothing changes."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    out = []
    for line in lines:
        out.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(out)


def deliver(path: Path | None, old: str, new: str, *, show: bool) -> None:
    """Print a diff, write the file, or print the text where there is no file."""
    if show:
        sys.stdout.write(diff(old, new, path.name if path else "text"))
    elif path is not None:
        if new != old:
            write_text(path, new)
    else:
        print(new)
