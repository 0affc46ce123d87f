"""Files that are replaced: what they keep, and what is never lost."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dgemma.files import write
from dgemma.files.write import FileChanged, check_writable, replace_file

ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a mode of its own."""
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    path.chmod(0o640)
    return path


@pytest.fixture(params=["without a name", "under a hidden name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to write a new file."""
    if request.param == "under a hidden name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return str(request.param)


def attribute(path: Path) -> bool:
    """Give a file an extended attribute, where the file system has them."""
    try:
        os.setxattr(path, "user.note", b"mine")
    except (OSError, AttributeError):
        return False
    return True


@pytest.mark.fault("R M2")
def test_metadata_is_kept(file: Path, way: str) -> None:
    """The owner becomes root; notes, access lists and modes are gone."""
    marked = attribute(file)
    if ROOT:
        os.chown(file, 1000, 1001)
    before = file.stat()
    replace_file(file, b"new", b"old")
    after = file.stat()
    assert file.read_bytes() == b"new" and after.st_ino != before.st_ino, way
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid, before.st_gid, before.st_mode
    )  # fmt: skip
    assert not marked or os.getxattr(file, "user.note") == b"mine"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.fault("R M2")
def test_access_lists_are_kept(file: Path) -> None:
    """An access list is an extended attribute, too."""
    entries = ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1),
               (32, 0, 2**32 - 1))  # fmt: skip
    packed = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + may.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, may, who in entries
    )
    try:
        os.setxattr(file, "system.posix_acl_access", packed)
    except (OSError, AttributeError):
        pytest.skip("no access lists on this file system")
    before = file.stat().st_mode
    replace_file(file, b"new")
    assert os.getxattr(file, "system.posix_acl_access") == packed and file.stat().st_mode == before


@pytest.mark.fault("R M2")
def test_hard_links_stay_links(file: Path) -> None:
    """The other name keeps the old text, and both programs are none the wiser."""
    other = file.with_name("other.txt")
    os.link(file, other)
    replace_file(file, b"a longer text", b"old")
    assert other.read_bytes() == b"a longer text" and other.stat().st_ino == file.stat().st_ino
    replace_file(other, b"x")
    assert file.read_bytes() == b"x"


@pytest.mark.fault("R M2")
def test_what_a_new_file_cannot_have(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the owner of the file: a new one would have another owner."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    before = file.stat().st_ino
    replace_file(file, b"new", b"old")
    assert file.read_bytes() == b"new" and file.stat().st_ino == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failure_in_place_puts_the_old_text_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, where the file could not be replaced."""
    os.link(file, file.with_name("other.txt"))
    real, calls = os.write, []

    def full(handle: int, data: memoryview) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(handle, data[:2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(file, b"a longer text")
    assert file.read_bytes() == b"old"


@pytest.mark.fault("R M3")
def test_a_file_that_changed_is_left_alone(file: Path) -> None:
    """What somebody saved meanwhile is overwritten in silence."""
    for text in (b"theirs", b"", b"old\n"):
        file.write_bytes(text)
        with pytest.raises(FileChanged):
            replace_file(file, b"new", b"old")
        assert file.read_bytes() == text
    file.unlink()
    with pytest.raises(FileChanged):
        replace_file(file, b"new", b"old")
    assert not file.exists()


@pytest.mark.fault("R M3")
def test_writers_wait_for_each_other(file: Path) -> None:
    """Two edits at once, from one text: the first is lost, and both say that all is well."""
    start, outcomes = threading.Barrier(8), []

    def edit(number: int) -> None:
        start.wait()
        try:
            replace_file(file, b"%d" % number, b"old")
        except FileChanged:
            outcomes.append(-1)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(outcomes) - {-1}
    assert len(outcomes) == 8 and outcomes.count(-1) == 7
    assert file.read_bytes() == b"%d" % winner


@pytest.mark.fault("R L5")
def test_long_names(tmp_path: Path, way: str) -> None:
    """A temporary name that is longer than any file's may be."""
    for size in (244, 255):
        file = tmp_path / ("n" * size)
        replace_file(file, b"one")
        replace_file(file, b"two", b"one")
        assert file.read_bytes() == b"two", way
        file.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("R L5")
def test_a_read_only_file_is_refused(file: Path) -> None:
    """Root may write to any file, so the mode that its owner chose is ignored."""
    file.chmod(0o444)
    for refuse in (check_writable, lambda path: replace_file(path, b"new")):
        with pytest.raises(OSError, match="read-only; make it writable"):
            refuse(file)
    assert file.read_bytes() == b"old" and stat.S_IMODE(file.stat().st_mode) == 0o444


@pytest.mark.fault("R L5")
@pytest.mark.process
@pytest.mark.parametrize("named", [False, True])
def test_a_kill_leaves_nothing_for_long(file: Path, named: bool) -> None:
    """A temporary file beside the user's, for every write that was killed."""
    program = (
        "import os, pathlib, signal, sys\nfrom dgemma.files.write import replace_file\n"
        f"{'del os.O_TMPFILE' if named else ''}\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "replace_file(pathlib.Path(sys.argv[1]), b'new' * 9999)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL and file.read_bytes() == b"old"
    left = [path for path in file.parent.iterdir() if path != file]
    assert len(left) <= named
    replace_file(file, b"new", b"old")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_new_file_has_the_usual_mode(tmp_path: Path, way: str) -> None:
    """A mode that nobody chose, as temporary files have it."""
    old = os.umask(0o027)
    try:
        replace_file(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640, way


def test_nothing_to_write_into(tmp_path: Path) -> None:
    """It is found after the work."""
    with pytest.raises(OSError, match="the directory .* is not there"):
        check_writable(tmp_path / "no" / "file")
    with pytest.raises(OSError, match="is a directory"):
        check_writable(tmp_path)
    check_writable(tmp_path / "file")


def test_without_locks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has none."""
    monkeypatch.setattr(write, "fcntl", None)
    replace_file(file, b"new", b"old")
    assert file.read_bytes() == b"new"
