"""`dgemma infill` and `edit`, the files that they read and write, and wrong use of `decide`."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.cli.edit import lines_to_span
from dgemma.cli.files import diff, read_text, write_text
from dgemma.cli.options import NOT_THE_ANSWER
from dgemma.errors import InvalidRequest
from dgemma.params import REFUSED_BY_EDIT, REFUSED_BY_FILL, SamplingParams
from tests.support.commands import Ran

TEXT = "Dear Mira,\nthe ___ is here.\r\nčau \U0001f600\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_bytes(TEXT.encode())
    return path


FAST = ("--seed", "1", "--max-steps", "4")


@pytest.mark.model
def test_infill_prints(run: Callable[..., Ran]) -> None:
    """The text around a hole, as it was given, and nothing else."""
    code, out, err = run("infill", "Dear ___, hello.", "--max-hole", "3", *FAST)
    assert (code, err) == (0, "")
    assert out.startswith("Dear ") and out.endswith(", hello.\n") and "___" not in out
    assert run("infill", "Dear ___, hello.", "--max-hole", "3", "--live", *FAST)[1] == out


@pytest.mark.model
def test_standard_input(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends that change on their way through a pipe; bytes that are no text."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a ___\r\nb\n")))
    code, out, _ = run("infill", "-", "--max-hole", "2", *FAST)
    assert code == 0 and out.endswith("\r\nb\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff ___")))
    code, _, err = run("infill", "-")
    assert code == 2 and "standard input cannot be read as UTF-8" in err


@pytest.mark.model
def test_infill_json(run: Callable[..., Ran]) -> None:
    """Every hole with its text, for programs; a mark of one's own."""
    code, out, _ = run("infill", "a ? b ?.", "--mark", "?", "--max-hole", "2", "--json", *FAST)
    made = json.loads(out)
    first, second = (hole["text"] for hole in made["holes"])
    assert code == 0 and made["text"] == f"a {first} b {second}." and made["seed"] == 1


@pytest.mark.model
def test_infill_in_place(run: Callable[..., Ran], file: Path) -> None:
    """Line ends, characters outside the vocabulary and the file's mode survive."""
    file.chmod(0o640)
    code, out, _ = run("infill", f"@{file}", "--in-place", "--max-hole", "2", *FAST)
    written = file.read_bytes().decode()
    assert code == 0 and out == ""
    before, after = TEXT.split("___")
    assert written.startswith(before) and written.endswith(after) and "___" not in written
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.model
def test_infill_in_place_and_json(run: Callable[..., Ran], file: Path) -> None:
    """One of two things that were asked for, in silence."""
    code, out, _ = run("infill", f"@{file}", "--in-place", "--json", "--max-hole", "2", *FAST)
    written = file.read_bytes().decode()
    assert code == 0 and json.loads(out)["text"] == written != TEXT


@pytest.mark.model
def test_diff_writes_nothing(run: Callable[..., Ran], file: Path) -> None:
    """A preview that changes the file."""
    for words in (("infill", f"@{file}", "--max-hole", "2"), ("edit", str(file), "--span", "2:2")):
        code, out, _ = run(*words, "--diff", *FAST)
        assert code == 0 and file.read_bytes().decode() == TEXT
        assert "-the ___ is here." in out and out.startswith("--- a/letter.txt\n+++ b/letter.txt\n")


@pytest.mark.model
def test_edit_changes_its_lines_alone(run: Callable[..., Ran], file: Path) -> None:
    """An edit that touches the lines around its span, or its line end."""
    code, _, err = run("edit", str(file), "--span", "2:2", "--strength", "1.0", *FAST)
    lines = file.read_bytes().decode().split("\n")
    assert code == 0 and "1 of 1 spans changed" in err
    assert lines[0] == "Dear Mira," and lines[-2:] == ["čau \U0001f600", ""]
    assert lines[-3].endswith("\r")


@pytest.mark.model
def test_edit_into_another_file(run: Callable[..., Ran], file: Path) -> None:
    """`--output` changes the file that was read as well."""
    other = file.with_name("other.txt")
    code, _, _ = run("edit", str(file), "--span", "1:1", "--output", str(other), *FAST)
    assert code == 0 and file.read_bytes().decode() == TEXT
    assert other.read_bytes().decode().endswith("\nthe ___ is here.\r\nčau \U0001f600\n")


@pytest.mark.model
@pytest.mark.parametrize("what", [("--span", "1"), ("--instruction", "Write it anew.")])
def test_edit_keeps_what_frames_the_text(
    what: tuple[str, str], run: Callable[..., Ran], tmp_path: Path
) -> None:
    """A byte order mark that is taken for the first letter, a last line end for the last one."""
    file = tmp_path / "framed.txt"
    file.write_bytes("\ufeffThe dog.\r\n".encode())
    code, _, err = run("edit", str(file), *what, "--strength", "1", *FAST)
    written = file.read_bytes()
    assert code == 0 and "1 of 1 spans changed" in err
    assert written.startswith(b"\xef\xbb\xbf") and written.endswith(b"\r\n")


@pytest.mark.parametrize("content", ["", "\r\n", "\ufeff\n"])
def test_edit_of_nothing(content: str, run: Callable[..., Ran], tmp_path: Path) -> None:
    """A text out of nowhere, because a line end alone is taken for a text."""
    file = tmp_path / "empty.txt"
    file.write_bytes(content.encode())
    code, _, err = run("edit", str(file), "--instruction", "Write.", *FAST)
    assert code == 2 and "is empty" in err and file.read_bytes().decode() == content


@pytest.mark.model
@pytest.mark.parametrize("content", ["", "same\n"])
def test_an_output_that_is_asked_for_is_written(
    content: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    """No file where nothing changed, or an old one that is left."""
    file, other = tmp_path / "in.txt", tmp_path / "out.txt"
    file.write_text(content)
    for _ in range(2):
        code, out, _ = run("edit", str(file), "--span", "1", "--strength", "0",
                           "--output", str(other), *FAST)  # fmt: skip
        assert (code, out) == (0, "") and other.read_text() == content
        other.write_text("old")


@pytest.mark.parametrize(
    ("span", "found"),
    [("1:1", "ab"), ("2", "c"), ("2:3", "c\r\n"), ("1:4", "ab\nc\r\n\nlast"), ("4:4", "last")],
)
def test_lines(span: str, found: str) -> None:
    """A span that takes the line end with it, or begins a character late."""
    text = "ab\nc\r\n\nlast"
    start, end = lines_to_span(text, span)
    assert text[start:end] == found


def test_a_byte_order_mark_is_in_no_line() -> None:
    """A mark that the first line takes with it, in an empty line too."""
    assert lines_to_span("\ufeffab\nc", "1") == (1, 3)
    assert lines_to_span("\ufeff\r\nc", "1") == (1, 1)
    assert lines_to_span("\ufeff", "1") == (1, 1)
    assert lines_to_span("a\n\ufeffb", "2") == (2, 4)


@pytest.mark.parametrize("span", ["0:1", "2:1", "1:5", "x", "1:y", ":", ""])
def test_wrong_lines(span: str) -> None:
    """Lines that are not there."""
    with pytest.raises(InvalidRequest, match="--span"):
        lines_to_span("ab\nc\n\nlast\n", span)


WRONG = [
    (("infill", "no hole here"), "no hole"),
    (("infill", "a ___ b", "--in-place"), "@FILE"),
    (("infill", "a ___ b", "--mark", ""), "--mark"),
    (("infill", "a ___ b", "--max-hole", "-1"), "--max-hole must be 0 or more, got -1"),
    (("infill", "a ___ b", "--no-search"), "--max-hole"),
    (("infill", "@/no/such/file"), "error: /no/such/file: no such file\n"),
    (("infill", "@."), "error: . is a directory; name a file\n"),
    (("infill", "a ___ b", "--json", "--diff"), "choose one"),
    (("edit", "/no/such/file"), "error: /no/such/file: no such file\n"),
    (("edit", "."), "error: . is a directory; name a file\n"),
    (("edit", "letter.txt", "--strength", "2"), "--strength must be a number from 0 to 1"),
    (("edit", "letter.txt", "--max-steps", "0"), "--max-steps"),
    (("decide", "x"), "no question"),
    (("decide", "x", "--choice", "Which?"), "choices"),
    (("decide", "x", "--questions", "/no/such/file"), "no such file"),
    (("generate", "x", "--json-schema", "@/no/such/file"), "/no/such/file: no such file"),
    (("serve", "--api-key-file", "nokeys"), "the key file nokeys: no such file\n"),
    (("generate", "x", "--json-schema", "{"), "--json-schema"),
    (("generate", "x", "--json-schema", "letter.txt"), "@letter.txt"),
    (("edit", "letter.txt", "--span", "3:2"), "FIRST:LAST"),
    (("edit", "letter.txt", "--span", "1:2", "--span", "2:3"), "--span 2:3 begins before line 3"),
    (("edit", "letter.txt", "--span", "3", "--span", "2"), "--span 2 begins before line 4"),
    (("edit", "letter.txt"), "--instruction"),
    (("generate", "x", "--regex", "("), "regex"),
    (("generate", "x", "--logit-bias", "3"), "ID=VALUE"),
    (("generate", "x", "--choices", "a", "--regex", "a"), "cannot be combined"),
]


@pytest.mark.model
@pytest.mark.parametrize(("words", "message"), WRONG)
def test_one_clear_line(
    run: Callable[..., Ran], words: tuple[str, ...], message: str, file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A traceback, or a message that names no remedy."""
    monkeypatch.chdir(file.parent)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": None}, "name of question 1 must be a text, got null"),
        ({"name": 5}, "name of question 1 must be a text, got 5"),
        ({"instructions": None}, "instructions of question 1 must be a text, got null"),
        ({"choices": [{"vlaue": "a"}, {"vlaue": "b"}]}, "value"),
        ({"choices": [{"value": None}, {"value": "b"}]}, "value"),
        ({"choices": [{"value": "a", "description": None}, {"value": "b"}]}, "description"),
        ({"choices": [{"value": "a"}, {"value": "a"}, {"value": "b"}]}, "twice"),
        ({"question": "Which?"}, "'question' is not known"),
        ({"choices": [1, 2]}, "texts, or objects"),
        ({"choices": None}, "list"),
    ],
)
def test_wrong_questions(
    entry: dict[str, object], message: str, run: Callable[..., Ran], tmp_path: Path
) -> None:
    """A question called "None", and choices that are dropped without a word."""
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"type": "choice", "choices": ["a", "b"]} | entry]))
    code, out, err = run("decide", "x", "--questions", str(file))
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert message in err


def test_questions_nested_too_deep(run: Callable[..., Ran], tmp_path: Path) -> None:
    """A traceback of the JSON reader."""
    file = tmp_path / "questions.json"
    file.write_text("[" * 100_000)
    code, _, err = run("decide", "x", "--questions", str(file))
    assert code == 2 and "is not valid JSON" in err


@pytest.mark.model
def test_generate_under_a_language(run: Callable[..., Ran], tmp_path: Path) -> None:
    """An option of the command line that does not reach the answer."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "boolean"}},'
                      '"required": ["a"], "additionalProperties": false}')  # fmt: skip
    code, out, _ = run("generate", "Hello!", "--json-schema", f"@{schema}", *FAST)
    assert code == 0 and isinstance(json.loads(out)["a"], bool)
    code, out, _ = run("generate", "Hello!", "--choices", "left", "right", *FAST)
    assert code == 0 and out in ("left\n", "right\n")
    code, out, _ = run("generate", "Hello!", "--regex", "[0-9]{4}", *FAST)
    assert code == 0 and out.strip().isdigit() and len(out) == 5


def test_a_write_that_fails_loses_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves half a file, or a temporary one."""

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidRequest, match="no space left"):
        write_text(file, "new")
    assert file.read_bytes().decode() == TEXT
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_link_stays_a_link(file: Path) -> None:
    """Replacing the link instead of what it points to."""
    link = file.with_name("link.txt")
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink() and read_text(file) == "new"


def test_a_link_to_nothing_is_followed(tmp_path: Path) -> None:
    """A file beside the link's target, or a link that is replaced."""
    link, target = tmp_path / "link.txt", tmp_path / "target.txt"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and read_text(target) == "new"


def test_links_in_a_circle(tmp_path: Path) -> None:
    """A traceback, or a link that is replaced."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(InvalidRequest, match="one cannot be written"):
        write_text(one, "new")
    assert one.is_symlink() and two.is_symlink()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """A file in the pipe's place, whose reader waits for ever; /dev/null lost in the same way."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "čau\n")
        assert pipe.is_fifo() and os.read(reader, 99) == "čau\n".encode()
    finally:
        os.close(reader)


@pytest.mark.process
def test_standard_output_is_written_into(tmp_path: Path) -> None:
    """What others wrote to the same file, lost with it where its name is /dev/stdout."""
    log = tmp_path / "log.txt"
    program = ("import pathlib, dgemma.cli.files as f\nprint('first', flush=True)\n"
               "f.write_text(pathlib.Path('/dev/stdout'), 'new\\n')")  # fmt: skip
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert log.read_text() == "first\nnew\n"


@pytest.mark.parametrize("sign", ["\f", "\u2028", "\x85", "\r", "\v", "\x1c"])
def test_diff_ends_lines_at_line_feeds_alone(sign: str) -> None:
    """Signs that only Python takes for line ends, so that no `patch` can read the diff."""
    assert diff(f"a{sign}b\nc\n", f"a{sign}b\nd\n", "x").endswith(f"@@\n a{sign}b\n-c\n+d\n")


def test_diff_says_where_a_line_end_is_missing() -> None:
    """Two lines of a diff run together."""
    assert diff("a\nb", "a\nc", "x").endswith(
        "-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n"
    )
    assert diff("a\n", "a\n", "x") == ""


@pytest.mark.parametrize("command", ["generate", "chat", "infill", "edit"])
def test_every_option_is_of_use(command: str, run: Callable[..., Ran]) -> None:
    """A parameter without an option, or an option that the command refuses or passes over."""
    code, out, _ = run(command, "--help")
    assert code == 0
    found = {word.strip("[],").removeprefix("--").replace("-", "_") for word in out.split()
             if word.startswith(("--", "[--"))}  # fmt: skip
    idle = {
        "infill": {*REFUSED_BY_FILL, *NOT_THE_ANSWER},
        "edit": {*REFUSED_BY_EDIT, *NOT_THE_ANSWER},
    }
    fields = set(SamplingParams.__slots__)
    assert found & fields == fields - idle.get(command, set())
