"""The models of a local hub cache: listed as commands take them, and deleted with care."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dgemma.errors import CheckpointError, ModelNotFound
from dgemma.weights.cached import cached_models, folder_size, remove_cached

OURS = {"model_type": "diffusion_gemma"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    path = tmp_path / "hub"
    path.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(path))
    return path


def hold(cache: Path, name: str, files: dict[str, bytes], commit: str = "c0ffee") -> Path:
    """Put a repository into the cache as huggingface-hub does: blobs, and links to them."""
    folder = cache / f"models--{name.replace('/', '--')}"
    for file, content in files.items():
        blob = folder / "blobs" / f"{abs(hash(content)):x}"
        link = folder / "snapshots" / commit / file
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def config(**more: object) -> bytes:
    return json.dumps(OURS | more).encode()


def test_what_is_listed(cache: Path) -> None:
    """Another network, a tokenizer alone, a download that broke off; a file counted twice."""
    hold(cache, "org/plain", {"config.json": config(), "m.safetensors": b"x" * 100})
    hold(cache, "org/plain", {"config.json": config(), "m.safetensors": b"x" * 100}, "decade")
    packed = config(quantization_config={"quant_method": "modelopt"})
    hold(cache, "org/fp4", {"config.json": packed, "m.safetensors": b"y" * 10})
    hold(cache, "org/mlx", {"config.json": config(quantization={"bits": 4}), "m.safetensors": b""})
    hold(cache, "org/gg.uf", {"q4.gguf": b"4" * 7, "big/q8.gguf": b"8" * 9, "README.md": b"#"})
    hold(cache, "org/llama", {"config.json": b'{"model_type": "llama"}', "m.safetensors": b"z"})
    hold(cache, "org/bad", {"config.json": b"[]", "m.safetensors": b"z"})
    hold(cache, "org/worse", {"config.json": b"\xff", "m.safetensors": b"z"})
    hold(cache, "org/text", {"config.json": config(), "tokenizer.json": b"{}"})
    gone = hold(cache, "org/gone", {"config.json": config(), "m.safetensors": b"gone"})
    (gone / "snapshots/c0ffee/m.safetensors").resolve().unlink()
    (cache / "datasets--org--data").mkdir()
    (cache / "models--..--x").mkdir()
    (cache / "version.txt").write_text("1")
    assert [(m.name, m.files, m.size, m.format) for m in cached_models()] == [
        ("org/fp4", 2, 10 + len(packed), "safetensors, modelopt"),
        ("org/gg.uf:big/q8.gguf", 1, 9, "GGUF"),
        ("org/gg.uf:q4.gguf", 1, 7, "GGUF"),
        ("org/mlx", 2, len(config(quantization={"bits": 4})), "safetensors, packed"),
        ("org/plain", 2, 100 + len(config()), "safetensors"),
    ]


def test_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command of a new user."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_models() == []


def test_one_repository_is_deleted(cache: Path) -> None:
    """A neighbour whose name begins alike, or a file outside that a link leads to."""
    outside = cache.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"1")
    folder = hold(cache, "org/a", {"config.json": config(), "m.safetensors": b"x" * 50})
    (folder / "snapshots/link").symlink_to(outside, target_is_directory=True)
    other = hold(cache, "org/ab", {"config.json": config(), "m.safetensors": b"y"})
    for name in ("models--org--a", "models--org--ab"):
        (cache / ".locks" / name).mkdir(parents=True)
    assert folder_size(folder) == (2, 50 + len(config()))
    assert remove_cached("org/a") == folder
    assert not folder.exists() and not (cache / ".locks/models--org--a").exists()
    assert len(list(other.rglob("*.safetensors"))) == 1
    assert (cache / ".locks/models--org--ab").exists() and (outside / "kept").exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "org", "org/", "/a", "../..", "org/..", "org/../../outside", "org\\a",
     "org/a/b", "org/a:q4.gguf", "~/a", "org/a\n", "org--a/b", "*/*", "nano"],
)  # fmt: skip
def test_no_name_leads_elsewhere(cache: Path, name: str) -> None:
    """`dgemma rm ../..` must not become a path."""
    (cache.parent / "outside").mkdir()
    hold(cache, "org/a", {"config.json": config()})
    before = sorted(cache.parent.rglob("*"))
    with pytest.raises(ModelNotFound):
        remove_cached(name)
    assert sorted(cache.parent.rglob("*")) == before


def test_a_link_in_place_of_a_repository(cache: Path) -> None:
    """Somebody keeps the files on another disk: what the link leads to is theirs."""
    outside = cache.parent / "disk"
    outside.mkdir()
    (cache / "models--org--a").symlink_to(outside, target_is_directory=True)
    with pytest.raises(CheckpointError, match="is a link"):
        remove_cached("org/a")
    assert outside.is_dir()
