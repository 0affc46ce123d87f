"""What a reader of foreign files must withstand: devices, pipes, endless files, JSON bombs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgemma.errors import DGemmaError
from dgemma.files import read


@pytest.mark.fault("R K3", "R K4")
def test_only_regular_files(tmp_path: Path) -> None:
    """A pipe without a writer hangs for ever; a device never ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, kind in (
        (pipe, "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a directory"),
    ):
        with pytest.raises(OSError, match=f"it is {kind}"):
            read.read_bytes(path, 10)
        with pytest.raises(OSError, match=f"it is {kind}"):
            read.check_regular(path)
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is a device"):
        read.read_text(link)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read.read_bytes("/dev/zero", 10, streams=True)


def test_size(tmp_path: Path) -> None:
    """A file of holes that is larger than the memory."""
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read.read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read.read_bytes(file, 4)


@pytest.mark.fault("P F5")
def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    """Some editors write one, and JSON has none."""
    file = tmp_path / "file"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read.read_json(file) == {"a": 1}


@pytest.mark.fault("R K1", "R K2")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1" * 5000, "too many digits"),
        ('{"a": -' + "1" * 5000 + "}", "too many digits"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" + "0," * 100 + "0]", "more than 50 values"),
        ("{", "Expecting"),
    ],
)
def test_json(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of the parser, or gigabytes of small objects."""
    if "values" in message:
        monkeypatch.setattr(read, "MOST_VALUES", 50)
    else:
        monkeypatch.setattr(read, "MOST_VALUES", 10**6)
    with pytest.raises(ValueError, match=message):
        read.parse_json(text)


def test_names_that_no_file_can_have() -> None:
    """A traceback because of the length of a name."""
    assert not read.exists("a" * 5000)
    with pytest.raises(OSError):
        read.read_bytes("a" * 5000, 1)


@pytest.mark.fault("R K15")
def test_errors_never_steer_a_terminal() -> None:
    """A file's text in an error clears the screen, or sets the window's title."""
    text = str(DGemmaError("a\x1b[2J\x9b1m\x07\x7f\r\tb\u202e\nč"))
    assert text == "a\\x1b[2J\\x9b1m\\x07\\x7f\\x0d\\x09b\\u202e\nč"
