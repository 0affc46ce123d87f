"""The files of users that commands rewrite: nothing that somebody wrote is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.cli import edit, infill
from dgemma.cli.files import deliver, read_text
from dgemma.errors import InvalidRequest
from tests.support.commands import Ran


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A text of two lines."""
    path = tmp_path / "letter.txt"
    path.write_text("one\ntwo\n")
    return path


@pytest.mark.fault("R M3")
def test_changed_while_the_model_wrote(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was saved meanwhile is overwritten, or the new text is thrown away."""
    old = read_text(file)
    file.write_text("one\ntwo\nthree\n")
    with pytest.raises(InvalidRequest, match="changed by another program.*changes are printed"):
        deliver(file, old, "one\n2\n", show=False)
    assert file.read_text() == "one\ntwo\nthree\n"
    assert "-two\n+2\n" in capsys.readouterr().out


def test_no_text_is_lost_where_it_cannot_be_written(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory that went away costs the answer."""
    with pytest.raises(InvalidRequest, match="changes are printed"):
        deliver(file, "a\n", "b\n", show=False, output=file.parent / "no" / "such.txt")
    assert "-a\n+b\n" in capsys.readouterr().out


@pytest.mark.fault("R L5")
@pytest.mark.parametrize(
    "words",
    [
        ("edit", "FILE", "--instruction", "x"),
        ("edit", "FILE", "--instruction", "x", "--output", "FILE"),
        ("infill", "@FILE", "--in-place"),
    ],
)
def test_read_only_is_refused_before_the_model_is_loaded(
    words: tuple[str, ...], file: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not to change does, or the refusal comes after minutes."""
    for module in (edit, infill):
        monkeypatch.setattr(module, "open_model", None)
    file.write_text("one ___\n")
    file.chmod(0o444)
    code, out, err = run(*(word.replace("FILE", str(file)) for word in words))
    assert (code, out) == (2, "") and err.endswith("or name another file\n")
    assert "letter.txt cannot be written: it is read-only" in err
    assert file.read_text() == "one ___\n"


@pytest.mark.fault("R K4")
@pytest.mark.parametrize(
    "words",
    [
        ("edit", "/dev/zero", "--instruction", "x"),
        ("infill", "@/dev/zero"),
        ("generate", "x", "--json-schema", "@/dev/zero"),
        ("decide", "x", "--questions", "/dev/zero"),
        ("serve", "--api-key-file", "/dev/zero"),
    ],
)
def test_endless_files(
    words: tuple[str, ...], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All memory is taken."""
    monkeypatch.setattr("dgemma.cli.files.MOST_TEXT_BYTES", 1000)
    monkeypatch.setattr("dgemma.cli.options.MOST_TEXT_BYTES", 1000)
    monkeypatch.setattr("dgemma.server.auth.MIB", 1000)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "more than 1,000 bytes" in err
