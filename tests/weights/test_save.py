"""Saving: what `transformers` makes of it, bit for bit, and all of it or nothing."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgemma.errors import CheckpointError
from dgemma.model.config import ModelConfig
from dgemma.model.hf_generation import GenerationDefaults
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import RELEASED, SamplingParams
from dgemma.weights import safetensors
from dgemma.weights.files import open_checkpoint
from dgemma.weights.load import load_weights
from dgemma.weights.safetensors import INDEX
from dgemma.weights.save import save_weights

MetaModel = Callable[[ModelConfig], DiffusionGemma]
RandomModel = Callable[..., DiffusionGemma]


def listing(directory: Path) -> dict[str, bytes]:
    """Names and contents of the files in a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def load_reference(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model and the report of `transformers`."""
    from transformers.models.diffusion_gemma import modeling_diffusion_gemma as oracle

    model, report = oracle.DiffusionGemmaForBlockDiffusion.from_pretrained(
        directory, output_loading_info=True
    )
    return model, report


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 60_000])
def test_transformers_to_us_and_back(
    tmp_path: Path,
    config: ModelConfig,
    meta_model: MetaModel,
    reference_model: Callable[..., Any],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    """Saved by `transformers`, loaded and saved by us, loaded by `transformers`: every number is
    the same, vision and both layer scalars included, in one file or many."""
    reference = reference_model(config, dtype)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_bytes)
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    model = meta_model(checkpoint.config)
    load_weights(model, checkpoint)
    save_weights(
        model,
        tmp_path / "ours",
        config=checkpoint.config,
        max_shard_bytes=max_shard_bytes,
        aside=checkpoint,
    )
    assert (tmp_path / "ours" / INDEX).exists() == (max_shard_bytes < 1_000_000)
    again, report = load_reference(tmp_path / "ours")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = reference.state_dict()
    assert again.dtype == dtype
    assert again.state_dict().keys() == wanted.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.oracle
def test_us_to_transformers_and_back(
    tmp_path: Path, config: ModelConfig, meta_model: MetaModel, random_model: RandomModel
) -> None:
    """A model born here (no vision weights): `transformers` misses those alone, and what it
    writes has our numbers."""
    model = random_model(config)
    save_weights(model, tmp_path / "ours", config=config)
    reference, report = load_reference(tmp_path / "ours")
    assert report["missing_keys"]
    assert all("vision" in name for name in report["missing_keys"])
    assert not report["unexpected_keys"]
    reference.save_pretrained(tmp_path / "theirs")
    again = meta_model(config)
    load_weights(again, open_checkpoint(tmp_path / "theirs"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_missing_vision_weights_are_said(
    tmp_path: Path, config: ModelConfig, random_model: RandomModel, caplog: pytest.LogCaptureFixture
) -> None:
    """`transformers` fills missing vision weights with random ones, so a warning is due; a model
    without a vision part gets none."""
    model = random_model(config)
    save_weights(model, tmp_path / "a", config=dataclasses.replace(config, vision=None))
    assert not caplog.text
    save_weights(model, tmp_path / "b", config=config)
    assert "vision" in caplog.text


@pytest.mark.oracle
def test_config_and_generation_come_back(
    tmp_path: Path, config: ModelConfig, random_model: RandomModel
) -> None:
    """A saved model is whole: sizes, sampler, end ids; the dtype is that of the weights."""
    from transformers.models.diffusion_gemma import modeling_diffusion_gemma as oracle

    own = SamplingParams(restart_after=8, tries=4)
    generation = GenerationDefaults(RELEASED, (1, 106, 50), 0, True, own)
    save_weights(
        random_model(config), tmp_path / "m", config=config, generation=generation,
        dtype=torch.bfloat16,
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == dataclasses.replace(config, dtype="bfloat16")
    assert checkpoint.generation == generation
    assert checkpoint.dtype == "bfloat16"
    theirs = oracle.DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "m")
    assert theirs.generation_config.eos_token_id == [1, 106, 50]
    assert theirs.generation_config.sampler_config.entropy_bound == 0.1


@pytest.mark.oracle
def test_vision_is_copied_as_it_is(
    tmp_path: Path,
    config: ModelConfig,
    meta_model: MetaModel,
    reference_model: Callable[..., Any],
) -> None:
    """Another dtype for the text part does not touch what this program does not understand."""
    reference_model(config).save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    model = meta_model(checkpoint.config)
    load_weights(model, checkpoint)
    save_weights(
        model, tmp_path / "ours", config=checkpoint.config, dtype=torch.bfloat16, aside=checkpoint
    )
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in after.items():
        wanted = before[name] if "vision" in name else before[name].bfloat16()
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), name


def test_shards_keep_to_their_size(saved: Path) -> None:
    """Each tensor is in the shard that the index names, and no shard is too large but for one
    whose only tensor is."""
    index = json.loads((saved / INDEX).read_text())
    total = 0
    for number, path in enumerate(sorted(saved.glob("*.safetensors")), start=1):
        tensors = load_file(path)
        size = sum(t.nbytes for t in tensors.values())
        total += size
        assert size <= 100_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == path.name for name in tensors)
        assert path.name.startswith(f"model-{number:05d}-of-")
    assert index["metadata"]["total_size"] == total


def test_further_files(tmp_path: Path, config: ModelConfig, random_model: RandomModel) -> None:
    """The tokenizer and the card: from a file, a text or bytes. Others can read them all (the
    library that writes weights makes files for the owner alone)."""
    (tmp_path / "tokenizer.json").write_text("{}")
    target = save_weights(
        random_model(config),
        tmp_path / "m",
        config=config,
        files={
            "tokenizer.json": tmp_path / "tokenizer.json",
            "README.md": "# Höhe",
            "a.txt": b"\xff",
        },
    )
    assert (target / "tokenizer.json").read_text() == "{}"
    assert (target / "README.md").read_text(encoding="utf-8") == "# Höhe"
    assert (target / "a.txt").read_bytes() == b"\xff"
    assert len({stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()}) == 1


def test_replaces_a_checkpoint_even_its_own(
    saved: Path, config: ModelConfig, meta_model: MetaModel
) -> None:
    """Saving over the checkpoint whose files are still mapped: shards of the old one must be gone
    and the numbers right."""
    checkpoint = open_checkpoint(saved)
    model = meta_model(config)
    load_weights(model, checkpoint, mapped=True)
    with torch.no_grad():
        model.norm.weight.add_(1)
    assert (saved / INDEX).exists()
    save_weights(model, saved, config=config)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    again = meta_model(config)
    load_weights(again, open_checkpoint(saved))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("before", ["nothing", "empty", "checkpoint"])
@pytest.mark.parametrize("stage", ["weights", "rename"])
def test_a_failure_leaves_no_half(
    tmp_path: Path,
    config: ModelConfig,
    random_model: RandomModel,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    stage: str,
) -> None:
    """Disk full in the second shard, or a rename that fails: what was there is there, and nothing
    else."""
    target = tmp_path / "parent" / "model"
    target.parent.mkdir()
    if before == "empty":
        target.mkdir()
    if before == "checkpoint":
        save_weights(random_model(config), target, config=config)
    old = listing(target) if target.exists() else None
    write, rename, calls = safetensors.save_file, Path.rename, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(*args, **kwargs)

    def refused(self: Path, to: Path) -> Path:
        if to == target and ".saving-" in self.name:
            raise OSError(13, "Permission denied")
        return rename(self, to)

    if stage == "weights":
        monkeypatch.setattr(safetensors, "save_file", full)
    else:
        monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(CheckpointError, match="cannot write"):
        save_weights(random_model(config), target, config=config, max_shard_bytes=60_000)
    assert (listing(target) if target.exists() else None) == old
    assert [path.name for path in target.parent.iterdir()] == ([] if old is None else ["model"])


def test_refuses_to_replace_what_is_no_checkpoint(
    saved: Path, tmp_path: Path, config: ModelConfig, random_model: RandomModel
) -> None:
    """`save(llm, "~")` must not cost a home directory, nor a checkpoint its training state."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="no checkpoint of this family"):
        save_weights(random_model(config), home, config=config)
    (home / "config.json").write_text('{"model_type": "gemma4"}')
    with pytest.raises(CheckpointError, match="no checkpoint of this family"):
        save_weights(random_model(config), home, config=config)
    (saved / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        save_weights(random_model(config), saved, config=config)
    (saved / "optimizer.pt").unlink()
    (saved / "runs.json").mkdir()
    with pytest.raises(CheckpointError, match=r"runs\.json"):
        save_weights(random_model(config), saved, config=config)
    with pytest.raises(CheckpointError, match="is a file"):
        save_weights(random_model(config), home / "thesis.tex", config=config)
    assert (home / "thesis.tex").read_text() == "x"
