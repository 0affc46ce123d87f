"""Packed checkpoints that we write: names, config, and the numbers that loading gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dgemma.errors import CheckpointError, DGemmaError, InvalidRequest
from dgemma.loading import load_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from dgemma.weights.files import open_checkpoint
from dgemma.weights.names import to_checkpoint
from dgemma.weights.safetensors import INDEX
from dgemma.weights.schemes.matching import matches
from dgemma.weights.writers.compressed import rounding_of
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.write import check_target, write_packed
from tests.support.packed_files import (
    CONFIG,
    assert_loads_as,
    modules_of,
    random_state,
    rest_of,
    unpacked_state,
    write,
)
from tests.support.packing import fp8_blocks, packed_state

FORMS = ("int4", "int4-all", "int8", "fp8", "mxfp4")
VISION = "model.encoder.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"
DOWN = "model.decoder.layers.1.experts.2.down_proj"


def source(path: Path, state: dict[str, Tensor], more: dict[str, Tensor] | None = None) -> Path:
    """The released layout in bf16."""
    tensors = {to_checkpoint(n): v for n, v in state.items()} | (more or {})
    return write(path, {n: v.bfloat16() for n, v in tensors.items()}, {"dtype": "bfloat16"})


def bf16_state() -> dict[str, Tensor]:
    return {name: value.bfloat16().float() for name, value in random_state().items()}


def made(tmp_path: Path, form: str, state: dict[str, Tensor], **more: object) -> tuple[Path, Tally]:
    """What `quantize` makes of a network."""
    checkpoint = open_checkpoint(source(tmp_path / "source", state, {VISION: torch.ones(4, 4)}))
    target = check_target(checkpoint.directory, tmp_path / "out", False)
    return target, write_packed(checkpoint, target, form, files={}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [*FORMS, "int4 symmetric", "int4-all symmetric"])
def test_what_is_written_and_what_it_loads_as(tmp_path: Path, form: str) -> None:
    """Codes under another module's name, a layer that is forgotten, vision or norms that change."""
    state, symmetric = bf16_state(), form.endswith("symmetric")
    form = form.split()[0]
    path, tally = made(tmp_path, form, state, symmetric=symmetric)
    wanted, numbers = rest_of(state) | {VISION: torch.ones(4, 4)}, {}
    for module, (_, weight) in modules_of(state).items():
        kind = "experts" if ".experts." in module else "dense MLP"
        rounded = rounding_of(form, weight.shape[1], symmetric, kind).round(weight.clone())
        wanted |= {f"{module}.{word}": part for word, part in rounded.parts.items()}
        numbers[module] = rounded.numbers
    found = load_file(path / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value.float(), wanted[name].float()), name
    unpacked = unpacked_state(state, numbers)
    config = replace(CONFIG, dtype="bfloat16")
    kinds = {type(m) for m in assert_loads_as(path, unpacked, config).modules()}
    assert {PackedLinear, PackedExperts} <= kinds
    errors = [(numbers[m] - w).square().sum() for m, (_, w) in modules_of(state).items()]
    sizes = [w.square().sum() for _, w in modules_of(state).values()]
    whole = sum(kind.error for kind in tally.kinds.values()) / sum(sizes)
    assert whole == pytest.approx(float(sum(errors) / sum(sizes)), rel=1e-4)
    assert tally.kinds["experts"].after < 0.6 * tally.kinds["experts"].before


@pytest.mark.parametrize("form", FORMS)
def test_the_lists_of_the_config(tmp_path: Path, form: str) -> None:
    """vllm #44796: a module in no list, or in both; every packed one has the rule of its file."""
    path, _ = made(tmp_path, form, bf16_state(), keep=["layers.0.mlp", "*.1.attention.q_proj"])
    said = json.loads((path / "config.json").read_text())["quantization_config"]
    stored = load_file(path / "model.safetensors")
    modules = {n.rpartition(".")[0] for n in stored if n.endswith("weight_scale")}
    plain = {n.removesuffix(".weight") for n, v in stored.items()
             if n.endswith(".weight") and v.dim() == 2 and "embed" not in n} - modules  # fmt: skip
    assert "model.decoder.layers.0.mlp.up_proj" in plain and DOWN in modules
    assert plain | {"lm_head"} == {e for e in said["ignore"] if "language_model" not in e}
    twins = {m.replace("decoder", "encoder.language_model") for m in plain if "layers." in m}
    assert twins - {VISION.removesuffix(".weight")} <= set(said["ignore"])
    groups = [(g["targets"], g["weights"]) for g in said["config_groups"].values()]
    for module in modules:
        rules = [w for targets, w in groups if any(matches(t, module) for t in targets)]
        group = rules[-1]["group_size"]  # that of a pattern goes before "Linear"
        scale = stored[f"{module}.weight_scale"]
        columns = modules_of(bf16_state())[module][1].shape[1]
        assert scale.shape[1] == -(-columns // (group or columns)), module


@pytest.mark.parametrize("form", FORMS)
def test_compressed_tensors_reads_the_config(tmp_path: Path, form: str) -> None:
    """A key that its own parser refuses."""
    reason = "compressed-tensors is the oracle; it is not installed"
    oracle = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    path, _ = made(tmp_path, form, bf16_state())
    said = json.loads((path / "config.json").read_text())["quantization_config"]
    read = oracle.QuantizationConfig.model_validate(said)
    assert read.format == said["format"] and len(read.config_groups) == len(said["config_groups"])


def test_kept_weights(tmp_path: Path) -> None:
    """`--keep` by our names, by released ones, by globs; a whole stack too."""
    state = bf16_state()
    keep = ["layers.0.attention", "model.decoder.layers.1.mlp.up_proj", "*0.experts.down_proj"]
    path, _ = made(tmp_path, "fp8", state, keep=keep)
    loaded = load_model(path, device="cpu", dtype="float32", grad=True).model.state_dict()
    equal = {name for name in state if torch.equal(loaded[name], state[name])}
    same = {f"layers.0.attention.{p}_proj.weight" for p in "qkvo"}
    same |= {"layers.1.mlp.up_proj.weight", "layers.0.experts.down_proj"}
    packed = {name for name, _ in modules_of(state).values()}
    assert equal & packed == same


@pytest.mark.parametrize(("keep", "match"), [
    (["layers.7.mlp"], "'layers.7.mlp' names nothing that would be packed"),
    (["layers.0.mlp.downproj"], "did you mean 'layers.0.mlp.down_proj'"),
    (["router"], "names nothing"),
    (["*"], "keep everything"),
])  # fmt: skip
def test_patterns_that_are_refused(tmp_path: Path, keep: list[str], match: str) -> None:
    """A slip of the pen that quantises what was to stay."""
    with pytest.raises(InvalidRequest, match=match):
        made(tmp_path, "fp8", bf16_state(), keep=keep)
    assert not (tmp_path / "out").exists()


def test_a_packed_source_is_unpacked_first(tmp_path: Path) -> None:
    """fp8 to int4; its quantization_config is replaced, and the tally says it."""
    state = bf16_state()
    stored, numbers = packed_state(
        state, lambda w: fp8_blocks(w, 1, w.shape[-1], "weight_scale", torch.bfloat16)
    )
    said = {"quantization_config": {"quant_method": "compressed-tensors"}}
    checkpoint = open_checkpoint(write(tmp_path / "source", stored, said))
    tally = write_packed(checkpoint, tmp_path / "out", "int4", files={})
    assert "packed itself and was unpacked first: 37 weights fp8" in str(tally.remarks)
    loaded = load_model(tmp_path / "out", device="cpu", dtype="float32", grad=True)
    assert loaded.checkpoint.config.extra["quantization_config"]["format"] == "pack-quantized"
    for name, (kind, weight) in modules_of(numbers).items():
        if name == DOWN:
            form = rounding_of("int4", weight.shape[1], False)
            found = loaded.model.state_dict()[kind][2]
            assert torch.equal(found, form.round(weight.clone()).numbers)


def test_shards_and_atomic_output(tmp_path: Path) -> None:
    """Several files with an index; nothing is left of a source that is damaged in the middle."""
    state = bf16_state()
    path, _ = made(tmp_path, "int8", state, max_shard_bytes=50_000)
    index = json.loads((path / INDEX).read_text())["weight_map"]
    held = {n: f.name for f in path.glob("*.safetensors") for n in load_file(f)}
    assert index == held and len(set(index.values())) > 2
    load_model(path, device="cpu", dtype="float32")
    state["layers.1.experts.down_proj"][2, 0, 0] = float("nan")
    checkpoint = open_checkpoint(source(tmp_path / "bad", state))
    with pytest.raises(CheckpointError, match=r"experts.down_proj holds NaN"):
        write_packed(checkpoint, tmp_path / "none", "int8", files={})
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out", "bad"}


@pytest.mark.parametrize(("name", "gguf", "match"), [
    ("source", False, "is the model itself"),
    ("other", False, "is there already"),
    ("file.gguf", True, "is there already"),
    ("new.gguf", False, "leave .gguf out"),
    ("new", True, "end its name in .gguf"),
    ("no/new.gguf", True, "the directory .* is not there"),
])  # fmt: skip
def test_targets_that_are_refused(tmp_path: Path, name: str, gguf: bool, match: str) -> None:
    """A model that is overwritten by its own copy, an hour of work before a name is refused."""
    for directory in ("source", "other"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "config.json").touch()
    (tmp_path / "file.gguf").touch()
    with pytest.raises(DGemmaError, match=match):
        check_target(tmp_path / "source", tmp_path / name, gguf)
    (tmp_path / "empty").mkdir()
    assert check_target(tmp_path / "source", tmp_path / "empty", False).name == "empty"


def test_importance_reaches_the_experts(tmp_path: Path) -> None:
    """The columns of one expert, given to another, or to none."""
    state = bf16_state()
    counts = torch.rand(4, 48, generator=torch.Generator().manual_seed(2)) ** 6 + 1e-3

    def importance(name: str) -> Tensor | None:
        return counts if name == "layers.1.experts.down_proj" else None

    weigh: Callable[[str], Tensor | None] = importance
    path, _ = made(tmp_path, "int4", state, importance=weigh)
    stored = load_file(path / "model.safetensors")
    weight = state["layers.1.experts.down_proj"][2]
    form = rounding_of("int4", 48, False)
    for number in range(4):
        parts = form.round(weight.clone(), counts[number]).parts
        assert torch.equal(parts["weight_packed"], stored[f"{DOWN}.weight_packed"]) == (number == 2)


def test_open_names_in_the_tally(tmp_path: Path) -> None:
    """Rows that are no whole groups, and what vLLM cannot compute, are said."""
    _, tally = made(tmp_path, "int4-all", bf16_state())
    said = " ".join(tally.remarks)
    assert "have rows of 48, 80, no whole groups of 32: groups of 16" in said
    assert "for it, use --symmetric" in said
    assert tally.kinds["vision"].before == tally.kinds["vision"].after == 32
    assert "| experts |" in tally.as_markdown() and "| all |" in tally.as_markdown()
