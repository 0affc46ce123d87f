"""GGUF files that we write, read by our reader and by the package; conversions there and back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dgemma.files.gguf import GgufFile
from dgemma.loading import copied_files, load_model
from dgemma.model.hf_config import read_config, write_config
from dgemma.quant.gguf_blocks import FORMATS
from dgemma.quant.gguf_rounding import GGUF_ROUNDING, gguf_blocks
from dgemma.text.tokenizer import Tokenizer
from dgemma.weights.files import open_checkpoint
from dgemma.weights.find import bundled_models
from dgemma.weights.gguf_names import ours_to_gguf
from dgemma.weights.names import to_checkpoint
from dgemma.weights.writers.gguf_keys import model_keys
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.write import write_packed, write_plain
from tests.support.packed_files import CONFIG, is_packed, random_state, write

NANO = bundled_models()["nano"]
SIZES = replace(CONFIG, moe_intermediate_size=40, intermediate_size=64, image_token_id=None)
"""Down projections of experts have rows that are no whole blocks."""


def bf16_state() -> dict[str, Tensor]:
    return {name: value.bfloat16().float() for name, value in random_state(SIZES).items()}


def source(path: Path, state: dict[str, Tensor]) -> Path:
    stored = {to_checkpoint(name): value.bfloat16() for name, value in state.items()}
    return write(path, stored, {"dtype": "bfloat16"}, SIZES)


def written(tmp_path: Path, state: dict[str, Tensor], kind: str | None) -> tuple[Path, Tally]:
    """A GGUF file of a network: blocks, or 16 bits."""
    checkpoint = open_checkpoint(source(tmp_path / "source", state))
    target = tmp_path / "out.gguf"
    if kind is None:
        return target, write_plain(checkpoint, target, "gguf", files={})
    return target, write_packed(checkpoint, target, f"gguf-{kind.lower()}", files={})


def meant(name: str, value: Tensor, kind: str | None) -> Tensor:
    """What a tensor becomes."""
    if kind is None or not is_packed(name) or value.shape[-1] % 32:
        return value
    form = next(form for form in FORMATS.values() if form.name == kind)
    rows = value.reshape(-1, value.shape[-1])
    return form.unpack({"blocks": gguf_blocks(kind, rows)}, rows.shape[1]).view(value.shape)


@pytest.mark.parametrize("kind", [*GGUF_ROUNDING, None])
def test_numbers(tmp_path: Path, kind: str | None) -> None:
    """Dimensions that are not reversed, offsets that slip, experts in another order."""
    state = bf16_state()
    path, tally = written(tmp_path, state, kind)
    loaded = load_model(path, device="cpu", dtype="float32", grad=True)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, meant(name, state[name], kind)), name
    left = "2 tensors have rows of 40, no whole blocks of 32"
    assert (left in str(tally.remarks)) == (kind is not None)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", [*GGUF_ROUNDING, None])
def test_the_package_reads_it(tmp_path: Path, kind: str | None) -> None:
    """Types and bytes of every tensor, and every key, as the package sees them."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle; it is not installed")
    state = bf16_state()
    path, _ = written(tmp_path, state, kind)
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name, value in state.items():
        tensor = found.pop(ours_to_gguf(name))
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        wanted = meant(name, value, kind)
        assert torch.equal(torch.from_numpy(numbers.copy()).view(wanted.shape), wanted), name
        exact = "router" in name or "norm" in name or "scalar" in name
        packed = kind is not None and is_packed(name) and value.shape[-1] % 32 == 0
        assert tensor.tensor_type.name == ("F32" if exact else kind if packed else "BF16"), name
    assert list(found) == ["rope_freqs.weight"]
    assert found["rope_freqs.weight"].data.tolist() == [1.0] * 4 + [pytest.approx(1e30)] * 12
    keys = model_keys(SIZES, open_checkpoint(tmp_path / "source").generation, "source", "BF16")
    for key, (_, value) in keys.items():
        got = reader.fields[key].contents()
        if key != "general.file_type":
            assert got == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.fault("Q 19")
def test_keys_do_not_depend_on_the_form_of_the_config() -> None:
    """`global_head_dim` is gone from 5.17's configs, and the converter's keys with it."""
    values = write_config(SIZES)
    text = values["text_config"]
    heads = {"head_dim": text.pop("global_head_dim"),
             "num_key_value_heads": text.pop("num_global_key_value_heads")}  # fmt: skip
    text["per_layer_config"] = {"1": heads}
    del text["final_logit_softcapping"]
    defaults = open_checkpoint(NANO).generation
    keys = model_keys(read_config(values), defaults, "x", "BF16")
    assert keys == model_keys(SIZES, defaults, "x", "BF16")
    assert keys["diffusion-gemma.attention.key_length"] == ("u32", 32)
    assert keys["diffusion-gemma.attention.head_count_kv"] == ("i32[]", [2, 1])
    assert keys["diffusion-gemma.final_logit_softcapping"] == ("f32", 30.0)


def test_nano_as_gguf(tmp_path: Path) -> None:
    """A tokenizer, sampler or template that is lost on the way, or ids that end no answer."""
    path = tmp_path / "nano.gguf"
    write_plain(open_checkpoint(NANO), path, "gguf", files={})
    ours, there = load_model(NANO, weights=False), load_model(path, weights=False)
    assert ours.template and there.template and ours.tokenizer and there.tokenizer
    messages = [{"role": "user", "content": "Is 12 more than 7? Ünï\n  <|turn> ok"}]
    assert ours.template.encode(messages) == there.template.encode(messages)
    assert there.tokenizer.special_ids == ours.tokenizer.special_ids
    sampler = ("max_steps", "t_min", "t_max", "entropy_bound", "confidence_threshold")
    for name in sampler:
        theirs = getattr(there.checkpoint.generation.sampling, name)
        assert theirs == getattr(ours.checkpoint.generation.sampling, name)
    same = ("eos_token_ids", "bos_token_id", "pad_token_id", "suppress_ids", "full", "sliding",
            "canvas_length", "layer_types", "sliding_window", "vocab_size")  # fmt: skip
    for name in same:
        assert getattr(there.checkpoint.config, name) == getattr(ours.checkpoint.config, name)
    keys = GgufFile(path)
    kinds = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True))
    assert [kinds[t] for t in ("<unk>", "<|turn>", "<|channel>", "<0x41>", "a")] == [3, 3, 4, 6, 1]
    assert keys["tokenizer.ggml.eot_token_id"] == 106


def test_there_and_back(tmp_path: Path) -> None:
    """Through GGUF and MLX to the released layout: the same bits, tokenizer and template."""
    path = tmp_path / "nano.gguf"
    write_plain(open_checkpoint(NANO), path, "gguf", files={})
    write_plain(open_checkpoint(path), tmp_path / "mlx", "mlx", files=copied_files(path))
    with safe_open(tmp_path / "mlx" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "mlx"}
        assert "model.decoder.layers.0.experts.gate_up_proj.weight" in file.keys()  # noqa: SIM118
    checkpoint = open_checkpoint(tmp_path / "mlx")
    tally = write_plain(
        checkpoint, tmp_path / "back", "safetensors", files=copied_files(tmp_path / "mlx")
    )
    first, last = (load_file(d / "model.safetensors") for d in (NANO, tmp_path / "back"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert tally.remarks == []
    texts = ("Hello, wörld!  7 > 3", "x\n\n\ty", "<|turn>user")
    one, other = (Tokenizer.from_directory(d) for d in (NANO, tmp_path / "back"))
    assert [one.encode(t, control=True) for t in texts] == [
        other.encode(t, control=True) for t in texts
    ]
    template = "chat_template.jinja"
    assert (tmp_path / "back" / template).read_text() == (NANO / template).read_text()


def test_gguf_from_gguf_keeps_the_tokenizer(tmp_path: Path) -> None:
    """Q8_0 from a 16-bit GGUF file is byte for byte that of the directory, but for its name."""
    model = shutil.copytree(NANO, tmp_path / "model")
    (model / "dgemma.json").unlink()
    write_plain(open_checkpoint(model), tmp_path / "a.gguf", "gguf", files={})
    write_packed(open_checkpoint(tmp_path / "a.gguf"), tmp_path / "b.gguf", "gguf-q8_0", files={})
    (tmp_path / "a.gguf").rename(tmp_path / "model.gguf")
    write_packed(open_checkpoint(model), tmp_path / "c.gguf", "gguf-q8_0", files={})
    one, other = GgufFile(tmp_path / "b.gguf"), GgufFile(tmp_path / "c.gguf")
    assert {k: one[k] for k in one if k != "general.name"} == {
        k: other[k] for k in other if k != "general.name"
    }
    held = [load_model(tmp_path / f"{n}.gguf", dtype="float32", grad=True).model for n in "bc"]
    for name, value in held[0].state_dict().items():
        assert torch.equal(value, held[1].state_dict()[name])


def test_rounding_of_wider_numbers_is_said(tmp_path: Path) -> None:
    """fp32 weights lose bits in a 16-bit file without a word."""
    stored = {to_checkpoint(n): v for n, v in random_state(SIZES).items()}
    checkpoint = open_checkpoint(write(tmp_path / "wide", stored, {}, SIZES))
    tally = write_plain(checkpoint, tmp_path / "out", "safetensors", files={})
    assert f"{len(stored)} tensors that are not packed had more than 16 bits" in str(tally.remarks)
