"""`dgemma list` and `dgemma rm` on a cache made for the test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Ran, Terminal

Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in an otherwise empty cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = tmp_path / "models--org--tiny"
    snapshot = path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "diffusion_gemma"}')
    (snapshot / "model.safetensors").write_bytes(b"x" * 1967)
    return path


def answers(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody at a terminal types this."""
    monkeypatch.setattr(sys, "stdin", Terminal(text))


def test_list(folder: Path, run: Run) -> None:
    """A name that no other command takes, or a size in another unit."""
    assert run("list") == (0, "org/tiny    2 files       2 KB  safetensors\n", "")
    assert json.loads(run("list", "--json")[1]) == [
        {"name": "org/tiny", "files": 2, "size": 2000, "format": "safetensors"}
    ]
    assert run("rm", "org/tiny", "--yes")[0] == 0
    code, out, err = run("list")
    assert (code, out) == (0, "") and "dgemma pull OWNER/NAME" in err
    assert run("list", "--json")[1] == "[]\n"


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 1), ("no\n", 1)])
def test_rm_asks(
    typed: str, code: int, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is taken for yes, or files that stay after it."""
    answers(typed, monkeypatch)
    found, _, err = run("rm", "org/tiny")
    assert found == code and folder.exists() == bool(code)
    assert f"{folder}: 2 files, 2 KB" in err


def test_rm_without_a_terminal(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that deletes by accident, or waits for ever."""
    code, _, err = run("rm", "org/tiny")
    assert code == 2 and "--yes" in err and folder.exists()
    code, _, err = run("rm", "org/tiny", "--yes")
    assert code == 0 and not folder.exists() and "deleted" in err


def test_rm_refuses(folder: Path, run: Run) -> None:
    """The bundled model, and names that are paths."""
    for name, why in (("nano", "comes with dgemma"), ("../..", "not a hub name"),
                      ("org/other", "not in the cache")):  # fmt: skip
        code, _, err = run("rm", name, "--yes")
        assert code == 2 and why in err and folder.exists()


@pytest.mark.process
def test_neither_loads_torch(folder: Path) -> None:
    """Seconds for a list of files."""
    code = (
        "import sys; from dgemma.cli.main import main; assert main(['list']) == 0; "
        "assert main(['rm', 'org/tiny', '--yes']) == 0; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
