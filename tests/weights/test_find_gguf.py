"""A GGUF file is found by its path, within a directory, and in the hub cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.cli.serve import short_name
from dgemma.errors import ModelNotFound
from dgemma.weights.find import find_model
from tests.support.gguf_files import gguf

FILE = gguf({})
SPLITS = [f"m-0000{i}-of-00002.gguf" for i in (1, 2)]


def put(directory: Path, *names: str) -> Path:
    """A directory of GGUF files."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(FILE)
    return directory


def refusal(name: str | Path) -> str:
    """Why a name is not found."""
    with pytest.raises(ModelNotFound) as caught:
        find_model(name)
    return str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a repository of these files into the hub cache; gives its snapshot."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def inner(*names: str) -> Path:
        root = tmp_path / "cache" / "models--org--name"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("c0ffee")
        return put(root / "snapshots" / "c0ffee", *names)

    return inner


def test_a_file(tmp_path: Path) -> None:
    """By its name or by how it begins; of several splits the first."""
    put(tmp_path, "a.gguf", "sha256-12", *SPLITS)
    assert find_model(tmp_path / "a.gguf") == (tmp_path / "a.gguf", "file")
    assert find_model(tmp_path / "sha256-12") == (tmp_path / "sha256-12", "file")
    assert find_model(str(tmp_path / SPLITS[1])) == (tmp_path / SPLITS[0], "file")
    (tmp_path / SPLITS[0]).unlink()
    assert f"{SPLITS[0]} is not beside it; download all" in refusal(tmp_path / SPLITS[1])
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert f"name its directory, {tmp_path}" in refusal(tmp_path / "model.safetensors")


def test_a_directory(tmp_path: Path) -> None:
    """One model is taken, with a config.json beside it, too; several are listed."""
    assert find_model(put(tmp_path / "one", "a.gguf"))[0] == tmp_path / "one" / "a.gguf"
    (tmp_path / "one" / "config.json").write_text("{}")
    put(tmp_path / "one", "mmproj-F16.gguf")
    assert find_model(tmp_path / "one")[0] == tmp_path / "one" / "a.gguf"
    (tmp_path / "one" / "model.safetensors").write_bytes(b"x")
    assert find_model(tmp_path / "one")[0] == tmp_path / "one"
    assert find_model(put(tmp_path / "set", *SPLITS))[0] == tmp_path / "set" / SPLITS[0]
    several = put(tmp_path / "several", "a.gguf", "b.gguf", *SPLITS)
    said = refusal(several)
    assert f"several models: a.gguf, b.gguf, {SPLITS[0]}. Name one: {several / 'FILE'}" in said
    inner = put(tmp_path / "inner", "q4/a.gguf", "mmproj.gguf")
    assert find_model(inner)[0] == inner / "q4" / "a.gguf"
    (tmp_path / "empty").mkdir()
    assert find_model(tmp_path / "empty")[0] == tmp_path / "empty"


def test_the_hub_cache(hub: Callable[..., Path]) -> None:
    """A repository has many; the file stands behind a colon."""
    snapshot = hub("a-Q4_K_M.gguf", "a-Q8_0.gguf", *(f"BF16/{name}" for name in SPLITS))
    assert find_model("org/name:a-Q8_0.gguf") == (snapshot / "a-Q8_0.gguf", "hub cache")
    assert find_model(f"org/name:BF16/{SPLITS[1]}")[0] == snapshot / "BF16" / SPLITS[0]
    assert "a-Q4_K_M.gguf, a-Q8_0.gguf. Name one: org/name:FILE" in refusal("org/name")
    said = refusal("org/name:a-Q5_0.gguf")
    assert "has no file 'a-Q5_0.gguf': a-Q4_K_M.gguf, a-Q8_0.gguf" in said
    assert "hf download org/name a-Q5_0.gguf" in said
    for odd in ("", "..", "../../refs/main", "/etc/passwd", "BF16", "a\0b"):
        assert "has no file" in refusal(f"org/name:{odd}")
    assert "hf download org/other x.gguf" in refusal("org/other:x.gguf")


def test_a_repository_of_one_file(hub: Callable[..., Path]) -> None:
    """It needs no file behind the name."""
    snapshot = hub("a.gguf")
    assert find_model("org/name")[0] == snapshot / "a.gguf"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nano", "nano"), ("org/model", "model"), ("/x/m-Q4_K_M.gguf", "m-Q4_K_M"),
        ("org/repo:BF16/m-00001-of-00002.gguf", "m"), ("org/repo:m.gguf", "m"),
        ("/x/v1.2", "v1.2"), (".gguf", ".gguf"),
    ],
)  # fmt: skip
def test_the_name_for_clients(model: str, name: str) -> None:
    """What a client asks for has no endings of files."""
    assert short_name(model) == name
