"""Finding a model and reading everything but its weights; each broken file is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.errors import CheckpointError, ConfigError, ModelNotFound
from dgemma.model.config import ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights import find
from dgemma.weights.files import load_config, open_checkpoint
from dgemma.weights.find import find_model, hub_cache
from dgemma.weights.safetensors import INDEX
from dgemma.weights.save import save_weights


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's cache or the directory it was started in."""
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def cached(name: str, config: str = "{}", ref: str | None = "main") -> Path:
    """A snapshot in the hub cache's layout."""
    root = hub_cache() / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(config)
    if ref is not None:
        (root / "refs").mkdir()
        (root / "refs" / ref).write_text("c0ffee")
    return snapshot


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundled, then directory, then hub cache: "./nano" is how one names a directory `nano`."""
    monkeypatch.setattr(find, "ASSETS", tmp_path / "assets")
    bundled = tmp_path / "assets" / "nano"
    bundled.mkdir(parents=True)
    (bundled / "config.json").write_text("{}")
    Path("nano").mkdir()
    Path("org/name").mkdir(parents=True)
    snapshot = cached("org/name")
    assert find_model("nano") == (bundled, "bundled")
    assert find_model("./nano") == (Path("nano"), "directory")
    assert find_model("org/name") == (Path("org/name"), "directory")
    Path("org/name").rmdir()
    assert find_model("org/name") == (snapshot, "hub cache")


def test_revisions_in_the_cache() -> None:
    """By branch and by commit; another branch is not taken instead."""
    snapshot = cached("org/name", ref="tuned")
    assert find_model("org/name", "tuned")[0] == snapshot
    assert find_model("org/name", "c0ffee")[0] == snapshot
    with pytest.raises(ModelNotFound, match=r"no complete snapshot of revision 'main'"):
        find_model("org/name")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"HF_HUB_CACHE": "/a/b", "HF_HOME": "/h"}, "/a/b"),
        ({"HUGGINGFACE_HUB_CACHE": "/a/b", "HF_HOME": "/h"}, "/a/b"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HOME": "$XDG_CACHE_HOME/x", "XDG_CACHE_HOME": "/c"}, "/c/x/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/root/me"}, "/root/me/.cache/huggingface/hub"),
    ],
)
def test_where_the_cache_is(
    values: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface-hub finds it, or what one program pulls the other does not see."""
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(expected)


def test_not_found_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is all that a user has to go on: three places and the remedy."""
    (tmp_path / "assets" / "nano").mkdir(parents=True)
    (tmp_path / "assets" / "nano" / "config.json").write_text("{}")
    monkeypatch.setattr(find, "ASSETS", tmp_path / "assets")
    with pytest.raises(ModelNotFound) as caught:
        find_model("org/name")
    message = str(caught.value)
    assert "bundled models: nano" in message
    assert str(tmp_path / "here" / "org" / "name") in message
    assert str(tmp_path / "cache" / "models--org--name") in message
    assert "dgemma pull org/name" in message
    with pytest.raises(ModelNotFound, match="did you mean 'nano'"):
        find_model("nanno")
    for strange in ("../up/and/away", "", "~nobody/x", "a/" + "b" * 5000, "a\0b", "a/b/c"):
        with pytest.raises(ModelNotFound, match="no model named"):
            find_model(strange)


def test_opens_what_was_saved(saved: Path, config: ModelConfig) -> None:
    """Sizes and headers of all shards, and the number format that most bytes are in."""
    checkpoint = open_checkpoint(saved)
    assert checkpoint.config.hidden_size == config.hidden_size
    assert checkpoint.generation == GenerationDefaults()
    assert checkpoint.dtype == "float32"
    assert len({info.file for info in checkpoint.source.tensors.values()}) > 2
    assert checkpoint.source.tensors["model.decoder.embed_tokens.weight"].shape == (100, 32)
    stored = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
    assert 0 < stored - checkpoint.nbytes < 100_000  # the headers


def test_config_without_weights(saved: Path) -> None:
    """`dgemma info` describes a config alone; opening the checkpoint is an error."""
    for path in saved.glob("model*"):
        path.unlink()
    assert load_config(saved).hidden_size == 32
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        open_checkpoint(saved)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@pytest.mark.parametrize("content", ["{", "[]", "\xff\xfe", "[" * 100_000])
def test_broken_json(saved: Path, name: str, content: str) -> None:
    """One error that names the file, for every way to break it."""
    (saved / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        open_checkpoint(saved)


def test_no_config(tmp_path: Path) -> None:
    """A directory of something else."""
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_shard(saved: Path, keep: int) -> None:
    """However much is missing, even the last byte: found from header and length alone."""
    shard = sorted(saved.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated.*download") as caught:
        open_checkpoint(saved)
    assert "dgemma pull" in str(caught.value)


def test_truncated_single_file(
    tmp_path: Path, config: ModelConfig, random_model: Callable[..., DiffusionGemma]
) -> None:
    """The same without an index; in the hub cache the remedy names the model."""
    snapshot = hub_cache() / "models--org--name" / "snapshots" / "c0ffee"
    save_weights(random_model(config), snapshot, config=config)
    open_checkpoint(snapshot)
    shard = snapshot / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"`dgemma pull org/name`"):
        open_checkpoint(snapshot)


def test_lfs_pointer(saved: Path) -> None:
    """A clone without Git LFS has texts in place of shards; "truncated" would mislead."""
    shard = sorted(saved.glob("*.safetensors"))[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_checkpoint(saved)


def test_missing_shard(saved: Path) -> None:
    """All missing shards in one error."""
    first, second, *_ = sorted(saved.glob("*.safetensors"))
    first.unlink()
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 2 of .*{first.name}, {second.name}"):
        open_checkpoint(saved)


def test_index_and_shards_disagree(saved: Path) -> None:
    """A mixture of two checkpoints must not load as one."""
    index = saved / INDEX
    good = json.loads(index.read_text())
    name = "model.decoder.norm.weight"
    for change, message in (
        ({"weight_map": good["weight_map"] | {"ghost": good["weight_map"][name]}}, "ghost"),
        ({"weight_map": {k: v for k, v in good["weight_map"].items() if k != name}}, name),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": good["weight_map"] | {name: "../model.safetensors"}}, "not a plain file"),
    ):
        index.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(saved)
