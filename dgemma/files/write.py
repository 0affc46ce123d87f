"""Writes single files: the old one or the new one is there, whatever happens.

A new file is written without a name where the system can do that, else under one fixed hidden name,
so a killed process leaves nothing, or what the next write removes. A file keeps its owner, mode,
extended attributes (access lists are such) and hard links: where a new file cannot have them, the
old one is written into instead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: no locks, and no two writers are told apart
    fcntl = None  # type: ignore[assignment]

WRITE_BITS = 0o222


class FileChanged(Exception):
    """The file is not as the caller read it."""


def check_writable(path: Path) -> None:
    """Refuse a file that `replace_file` would refuse, before the work is done.

    Raises:
        OSError: it is read-only, or its directory is not there.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        parent = Path(os.path.realpath(path)).parent
        if not parent.is_dir():
            raise OSError(errno.ENOENT, f"the directory {parent} is not there") from None
        if not os.access(parent, os.W_OK):
            raise OSError(errno.EACCES, f"the directory {parent} is not writable") from None
        return
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "it is a directory")
    # The system lets root write to any file; its owner still said that it is not to change.
    if not status.st_mode & WRITE_BITS or not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, "it is read-only; make it writable, or name another file")


def replace_file(path: Path, data: bytes, old: bytes | None = None) -> None:
    """Make `data` the content of a regular file, which may be absent. A link stays a link.

    Another program that writes at the very moment of the replacement is not seen; another
    `replace_file` is waited for.

    Args:
        old: what the caller read there; None: whatever is there may be replaced.

    Raises:
        FileChanged: the file is not as `old`; it is left alone.
        OSError: it cannot be written; it is as it was.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    with _locked(target) as handle:
        if handle is None:
            if old is not None:
                raise FileChanged
            _new_file(target, data, None)
            return
        content = _content(handle)
        if old is not None and content != old:
            raise FileChanged
        if os.fstat(handle).st_nlink > 1 or not _new_file(target, data, handle):
            _write_into(target, data, content)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[int | None]:
    """The open file of that name, locked against other writers; None if there is none."""
    while True:
        try:
            handle = os.open(target, os.O_RDONLY)
        except FileNotFoundError:
            yield None
            return
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
            # A writer that we waited for has put another file in its place.
            if os.path.exists(target) and os.path.samestat(os.fstat(handle), os.stat(target)):
                yield handle
                return
        finally:
            os.close(handle)


def _content(handle: int) -> bytes:
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read()


def _new_file(target: Path, data: bytes, like: int | None) -> bool:
    """Put a new file in the place of `target`; False if it could not have the metadata of `like`.

    It has no name until all is on the disk. `link` cannot replace a name, so for the blink of an
    eye it has a second one.
    """
    hidden = _hidden(target)
    hidden.unlink(missing_ok=True)  # of a process that was killed
    try:
        handle, unnamed = _open_new(hidden)
    except PermissionError:
        if like is None:
            raise
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            if like is not None and not _copy_metadata(like, handle):
                return False
            file.write(data)
            _take_name(file, unnamed, hidden, target)
    finally:
        hidden.unlink(missing_ok=True)
    return True


def _hidden(target: Path) -> Path:
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".dgemma-{name}.new")


def _take_name(file: BinaryIO, unnamed: bool, hidden: Path, target: Path) -> None:
    """Put a file that is written to its end in the place of `target`."""
    handle = file.fileno()
    file.flush()
    os.fsync(handle)
    if unnamed:
        # With a directory's descriptor, though unused, Python follows the link in /proc.
        os.link(f"/proc/self/fd/{handle}", hidden, src_dir_fd=handle, follow_symlinks=True)
    os.replace(hidden, target)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that is written piece by piece and has its name once the block ends well.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    hidden = _hidden(target)
    hidden.unlink(missing_ok=True)  # of a process that was killed
    handle, unnamed = _open_new(hidden)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            _take_name(file, unnamed, hidden, target)
    finally:
        hidden.unlink(missing_ok=True)


def _open_new(hidden: Path) -> tuple[int, bool]:
    """An empty file to write to, and whether it has no name yet."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a file system that cannot
            return os.open(hidden.parent, os.O_WRONLY | os.O_TMPFILE, 0o666), True
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(hidden, flags, 0o666), False


def _copy_metadata(source: int, target: int) -> bool:
    """Give `target` owner, mode and attributes of `source`; False if it cannot have them."""
    old, new = os.fstat(source), os.fstat(target)
    try:
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(target, old.st_uid, old.st_gid)
        os.fchmod(target, stat.S_IMODE(old.st_mode))
        for name in _attributes(source):
            value = os.getxattr(source, name)
            if name not in _attributes(target) or os.getxattr(target, name) != value:
                os.setxattr(target, name, value)
        return set(_attributes(target)) == set(_attributes(source))
    except OSError:
        return False


def _attributes(handle: int) -> list[str]:
    """The names of the extended attributes; none where the system has none."""
    if not hasattr(os, "listxattr"):
        return []
    try:
        return os.listxattr(handle)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        return []


def _write_into(target: Path, data: bytes, old: bytes) -> None:
    """Overwrite a file in place, which keeps all that it has; put `old` back if that fails."""
    with open(target, "r+b", buffering=0) as file:
        try:
            _overwrite(file.fileno(), data)
        except OSError:
            _overwrite(file.fileno(), old)
            raise


def _overwrite(handle: int, data: bytes) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.ftruncate(handle, len(data))
    os.fsync(handle)
