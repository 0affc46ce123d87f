"""Checkpoints from elsewhere that hold strange things: one clear error each, and soon."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma.errors import CheckpointError, ConfigError, DGemmaError, TokenizerError
from dgemma.frontend import read_text_files
from dgemma.loading import load_model, save_model
from dgemma.text.tokenizer import Tokenizer
from dgemma.weights.files import load_config, load_generation, open_checkpoint
from dgemma.weights.find import find_model
from dgemma.weights.safetensors import INDEX, SINGLE
from tests.support.hostile_checkpoints import make_tiny

EMBED = "model.decoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    directory = tmp_path_factory.mktemp("tiny") / "whole"
    make_tiny(directory)
    return directory


@pytest.fixture
def tiny(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; `text_config__x` is a key of text_config."""
    found = json.loads(path.read_text())
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        (found[section] if section else found)[key] = value
    path.write_text(json.dumps(found))


def refusal(read: Callable[[], object], kind: type[DGemmaError]) -> str:
    """The one error."""
    with pytest.raises(kind) as found:
        read()
    text = str(found.value)
    assert len(text) < 2000 and text.replace("\n", "").isprintable()
    return text


@pytest.mark.fault("R K1")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_number_of_thousands_of_digits(tiny: Path, name: str) -> None:
    """A traceback of the JSON reader."""
    text = (tiny / name).read_text()
    (tiny / name).write_text(text.replace("{", '{"vocab_size": ' + "1" * 5000 + ",", 1))
    assert name in refusal(lambda: open_checkpoint(tiny), ConfigError)


@pytest.mark.fault("R K1")
@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 10**400), ("vocab_size", 10**400), ("hidden_size", 2**31),
     ("final_logit_softcapping", 1e999), ("eos_token_id", [10**400])],
)  # fmt: skip
def test_numbers_beyond_all_sizes(tiny: Path, key: str, value: object) -> None:
    """An integer that no float can hold; a size that no tensor can have."""
    change(tiny / "config.json", **{f"text_config__{key}": value})
    assert key in refusal(lambda: load_config(tiny), ConfigError)


@pytest.mark.fault("R K2")
@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_deep_settings_of_the_tokenizer(tiny: Path, name: str) -> None:
    """A traceback of the JSON reader."""
    (tiny / name).write_text("[" * 100_000)
    assert "nested too deep" in refusal(lambda: read_text_files(tiny), TokenizerError)


@pytest.mark.fault("R K3", "R K4")
@pytest.mark.parametrize("kind", ["pipe", "endless"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", SINGLE, INDEX, "tokenizer.json",
     "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"],
)  # fmt: skip
def test_no_file_at_all(tiny: Path, name: str, kind: str) -> None:
    """A pipe is waited for; a device is read till the memory ends."""
    (tiny / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tiny / name)
    else:
        (tiny / name).symlink_to("/dev/zero")
    text = refusal(lambda: load_model(tiny, device="cpu"), DGemmaError)
    assert name in text and "not a regular file" in text


@pytest.mark.fault("R K3")
def test_other_pipes(tiny: Path, tmp_path: Path) -> None:
    """A shard that the index names; a GGUF file; the cache's note of a revision."""
    pipe = tiny / "shard.safetensors"
    os.mkfifo(pipe)
    (tiny / INDEX).write_text(json.dumps({"weight_map": {EMBED: pipe.name}}))
    assert "a pipe" in refusal(lambda: open_checkpoint(tiny), CheckpointError)
    assert "a pipe" in refusal(lambda: Tokenizer.from_gguf(pipe), TokenizerError)


def test_a_note_of_the_cache_that_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path out of the cache, or a file without end."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--a--b"
    (root / "refs").mkdir(parents=True)
    for content in ("../../../x", "x" * 5000, "\0", "\udcff"):
        (root / "refs" / "main").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert "hub cache" in refusal(lambda: find_model("a/b"), DGemmaError)


@pytest.mark.fault("R K5", "R K15")
@pytest.mark.parametrize("shard", ["a" * 5000, "\x1b[2J\x1b]0;pwned\x07", "\0", "../x", ""])
def test_names_in_the_index(tiny: Path, shard: str) -> None:
    """A traceback because no file may have the name; a terminal that is steered."""
    (tiny / INDEX).write_text(json.dumps({"weight_map": {EMBED: shard}}))
    refusal(lambda: open_checkpoint(tiny), CheckpointError)


@pytest.mark.fault("R K6")
def test_a_million_layers(tiny: Path) -> None:
    """No answer for a minute, as each layer is built."""
    kinds = ["sliding_attention"] * 2000
    for count, listed in ((10**6, None), (2000, kinds)):
        change(
            tiny / "config.json", text_config__num_hidden_layers=count,
            text_config__layer_types=listed,
        )  # fmt: skip
        text = refusal(lambda: load_config(tiny), ConfigError)
        assert "num_hidden_layers must be at most" in text
    change(tiny / "config.json", text_config__num_hidden_layers=2,
           text_config__layer_types=None, text_config__num_experts=10**6)  # fmt: skip
    assert "num_experts" in refusal(lambda: load_config(tiny), ConfigError)


@pytest.mark.fault("R K14")
@pytest.mark.parametrize(("canvas", "context"), [(10**9, 512), (16, 1), (512, 512)])
def test_no_room_for_a_prompt(tiny: Path, canvas: int, context: int) -> None:
    """Each request is told to be shorter than nothing."""
    change(tiny / "config.json", canvas_length=canvas, text_config__max_position_embeddings=context)
    text = refusal(lambda: load_config(tiny), ConfigError)
    assert f"config.json: canvas_length {canvas}" in text
    assert f"max_position_embeddings {context} of text_config" in text


@pytest.mark.fault("R K15")
def test_a_name_that_steers_the_terminal(tiny: Path) -> None:
    """Escape sequences of a tensor's name in the error."""
    weights = load_file(tiny / SINGLE)
    weights["\x1b[2J\x1b]0;pwned\x07" + "x" * 9999] = weights.pop(EMBED)
    save_file(weights, tiny / SINGLE)
    assert "\\x1b[2J" in refusal(lambda: load_model(tiny, device="cpu"), CheckpointError)


def test_long_values_are_cut(tiny: Path) -> None:
    """A message of a megabyte."""
    change(tiny / "config.json", canvas_length=["x" * 99] * 9999)
    refusal(lambda: load_config(tiny), ConfigError)
    change(tiny / "config.json", canvas_length=16, text_config__attention_bias="x" * 99_999)
    refusal(lambda: load_config(tiny), ConfigError)
    change(tiny / "generation_config.json", eos_token_id=["x"] * 99_999)
    refusal(lambda: load_generation(tiny), ConfigError)


def test_a_hundred_thousand_tensors_more(tiny: Path) -> None:
    """A report of as many lines."""
    weights = load_file(tiny / SINGLE)
    weights |= {f"a{number}": torch.zeros(1) for number in range(5000)}
    save_file(weights, tiny / SINGLE)
    with pytest.raises(CheckpointError, match="and 4960 lines more"):
        load_model(tiny, device="cpu")


@pytest.mark.fault("P F1")
@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.language_model.norm.weight"])
def test_tied_weights_that_are_written_twice(
    tiny: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainers write the head, too, and the file is called broken."""
    weights = load_file(tiny / SINGLE)
    twin = EMBED if name == "lm_head.weight" else "model.decoder.norm.weight"
    save_file(weights | {name: weights[twin].clone()}, tiny / SINGLE)
    with caplog.at_level(logging.INFO, "dgemma"):
        loaded = load_model(tiny, device="cpu")
    assert [f"1 tensors that repeat others left aside: {name}"] == caplog.messages
    save_model(loaded.model, loaded.checkpoint, tiny.parent / "again")
    assert set(load_file(tiny.parent / "again" / SINGLE)) == set(weights)
    weights[name] = weights[twin].clone()
    weights[name].view(-1)[-1] += 1
    save_file(weights, tiny / SINGLE)
    with pytest.raises(CheckpointError, match=f"{name} differs from {twin}.*tied"):
        load_model(tiny, device="cpu")
    save_file(weights | {name: weights[twin][:1].clone()}, tiny / SINGLE)
    with pytest.raises(CheckpointError, match=f"{name} differs from {twin}.*tied"):
        load_model(tiny, device="cpu")


@pytest.mark.fault("P F3", "P F5")
def test_the_template_within_the_settings(tiny: Path) -> None:
    """A chat model that "has no chat template"; a mark that is in every prompt."""
    source = (tiny / "chat_template.jinja").read_text(encoding="utf-8")
    (tiny / "chat_template.jinja").unlink()
    assert read_text_files(tiny)[1] is None
    change(tiny / "tokenizer_config.json", chat_template="\ufeff" + source)
    tokenizer, template = read_text_files(tiny)
    assert tokenizer and template
    assert template.encode([{"role": "user", "content": "Hi"}])[0] == tokenizer.bos_id


@pytest.mark.fault("N 52")
def test_save_over_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """One word too few in a script, and a model is gone."""
    loaded = load_model(tiny, device="cpu")
    with pytest.raises(CheckpointError, match="pass overwrite=True"):
        save_model(loaded.model, loaded.checkpoint, tiny)
    assert save_model(loaded.model, loaded.checkpoint, tiny, overwrite=True) == tiny
    empty = tmp_path / "empty"
    empty.mkdir()
    save_model(loaded.model, loaded.checkpoint, empty)
    assert load_model(empty, device="cpu").template is not None


@pytest.mark.fault("R L5")
def test_what_a_killed_save_left_is_removed(tiny: Path) -> None:
    """Gigabytes under a hidden name, for each save that was killed."""
    loaded = load_model(tiny, device="cpu")
    target = tiny.parent / ("n" * 255)
    save_model(loaded.model, loaded.checkpoint, target)
    before = sorted(path.name for path in tiny.parent.iterdir())
    from dgemma.weights.save import replacing

    killed = replacing(target)
    with killed as fresh:
        left = fresh.with_name(fresh.name[:-1] + "z")
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"x")
        save_model(loaded.model, loaded.checkpoint, target, overwrite=True)
        assert fresh.exists() and not left.exists()
        shutil.copytree(target, fresh, dirs_exist_ok=True)
    assert sorted(path.name for path in tiny.parent.iterdir()) == before
