"""Integers of compressed-tensors, written here by the rules of its formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from dgemma.weights.schemes import compressed_tensors
from tests.support.packed_files import (
    assert_loads_as,
    random_state,
    unpacked,
    write,
)
from tests.support.packing import Pack, Parts, fp8_blocks, mixed_state, packed_state
from tests.support.packing_ints import int_quantized, pack_quantized

UP = "model.decoder.layers.1.experts.2.up_proj"


def rule(bits: int = 4, group: int = 32, **more: Any) -> dict[str, Any]:
    """The weights of a group of the config."""
    size = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": True, **size, **more}


def config(*rules: dict[str, Any], targets: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """What config.json says: a group for each rule; the first may have targets of its own."""
    groups = {
        f"group_{i}": {"targets": (targets if i == 0 and targets else ["Linear"]), "weights": found}
        for i, found in enumerate(rules)
    }
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", **more}
    return {"quantization_config": said | {"config_groups": groups}}


def four(weight: Tensor) -> Parts:
    """As the AWQ-INT4 file that most people have: groups of 32, symmetric."""
    return pack_quantized(weight, 4, 32)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "group"),
    [(16, 704, 128), (6, 352, 32), (3, 2112, 64), (5, 45, 16), (5, 45, 0)],
)
def test_numbers(
    bits: int, symmetric: bool, mixed: bool, rows: int, columns: int, group: int
) -> None:
    """Every kind, bit for bit: words that are filled up along K and N, a last group cut short."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    parts, numbers = pack_quantized(weight, bits, group, symmetric=symmetric, mixed=mixed)
    said = config(rule(bits, group, symmetric=symmetric))["quantization_config"]
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    found = unpacked(compressed_tensors.read_scheme, said, stored)
    assert torch.equal(found[f"{UP}.weight"], numbers)


@pytest.mark.parametrize("experts", ["each", "stacks"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int4(tmp_path: Path, experts: str, symmetric: bool) -> None:
    """Attention, MLP and experts, one by one or stacked; rows of 80 have a last group of 16."""
    stored, wanted = packed_state(
        random_state(), lambda w: pack_quantized(w, 4, 32, symmetric=symmetric), experts=experts
    )
    path = write(tmp_path, stored, config(rule(symmetric=symmetric)))
    kinds = {type(module) for module in assert_loads_as(path, wanted).modules()}
    assert {PackedLinear, PackedExperts} <= kinds


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (lambda w: pack_quantized(w, 8, 0), rule(8, 0)),
        (lambda w: pack_quantized(w, 3, 16, symmetric=False), rule(3, 16, symmetric=False)),
        (lambda w: pack_quantized(w, 4, 32, mixed=w.dim() == 2), rule(actorder="group")),
        (lambda w: int_quantized(w, 0), rule(8, 0)),
        (lambda w: int_quantized(w, 32, symmetric=False), rule(8, 32, symmetric=False)),
    ],
    ids=["int8", "int3", "act-order", "int-quantized", "int-quantized-zeros"],
)
def test_kinds(tmp_path: Path, pack: Pack, said: dict[str, Any]) -> None:
    """A network of each; 3 bits cross words, and rows of 80 do not fill their last one."""
    stored, wanted = packed_state(random_state(), pack)
    assert_loads_as(write(tmp_path, stored, config(said)), wanted)


def test_int_quantized_stacks_and_single_scales() -> None:
    """A stack of experts; and one scale for a whole matrix."""
    weight = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(1))
    parts, numbers = int_quantized(weight, 0)
    name = "model.decoder.layers.0.experts.down_proj"
    stored = {f"{name}.{word}": part for word, part in parts.items()}
    said = config(rule(8, 0))["quantization_config"]
    found = unpacked(compressed_tensors.read_scheme, said, stored)
    assert torch.equal(found[f"{name}.weight"], numbers)
    said = config({"num_bits": 8, "strategy": "tensor"})["quantization_config"]
    stored = {f"{UP}.weight": parts["weight"][0], f"{UP}.weight_scale": torch.tensor([0.5])}
    found = unpacked(compressed_tensors.read_scheme, said, stored)
    assert torch.equal(found[f"{UP}.weight"], parts["weight"][0] * 0.5)


def test_mixed_precision(tmp_path: Path) -> None:
    """A format for each group: attention 8 bit, MLP fp8, experts 4 bit."""
    packs: dict[str, Pack] = {
        "attention": lambda w: pack_quantized(w, 8, 0),
        ".mlp.": lambda w: fp8_blocks(w, 1, w.shape[-1], "weight_scale"),
        "experts": four,
    }
    stored, wanted = mixed_state(random_state(), packs)
    groups = {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": rule(8, 0),
                      "format": "pack-quantized"},
        "mlp": {"targets": ["re:.*layers\\.\\d+\\.mlp.*"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                "format": "float-quantized"},
        "rest": {"targets": ["Linear"], "weights": rule(), "format": "pack-quantized"},
    }  # fmt: skip
    said = config(format="mixed-precision")
    said["quantization_config"]["config_groups"] = groups
    assert_loads_as(write(tmp_path, stored, said), wanted)


def test_experts_of_one_stack_may_differ(tmp_path: Path) -> None:
    """Zero points for some experts only: nothing is dropped, and the stack is unpacked at load."""
    state = random_state()
    stored, wanted = packed_state(state, four)
    other, more = packed_state(state, lambda w: pack_quantized(w, 4, 32, symmetric=False))
    expert = "model.decoder.layers.0.experts.1."
    stored = {n: t for n, t in stored.items() if expert not in n}
    stored |= {n: t for n, t in other.items() if expert in n}
    for name in ("layers.0.experts.gate_up_proj", "layers.0.experts.down_proj"):
        wanted[name][1] = more[name][1]
    said = config(rule(symmetric=False), rule(), targets=["re:.*experts\\.1\\..*"])
    said["quantization_config"]["config_groups"]["group_0"]["targets"] = [expert.rstrip(".")]
    assert_loads_as(write(tmp_path, stored, said), wanted)


@pytest.mark.parametrize("prefix", ["model.decoder", "model.encoder.language_model"])
@pytest.mark.parametrize("value", [None, 0.0, float("nan")])
@pytest.mark.fault("Q 6", "Q 13")
def test_lists_input_and_cache_scales_change_nothing(
    tmp_path: Path, prefix: str, value: float | None
) -> None:
    """vllm #45212, sglang #25792: a missing, zero or broken input scale; scales of a cache."""
    stored, wanted = packed_state(random_state(), four)
    if value is not None:
        stored[f"{UP}.input_scale"] = torch.tensor([value])
    attention = "model.decoder.layers.0.self_attn."
    stored |= {f"{attention}{n}": torch.ones(1) for n in ("k_proj.k_scale", "v_proj.v_scale")}
    ignore = [f"{prefix}.layers.{i}.router.proj" for i in range(2)] + ["lm_head", "re:.*vision.*"]
    assert_loads_as(write(tmp_path, stored, config(rule(), ignore=ignore)), wanted)


@pytest.mark.fault("Q 12")
def test_a_packed_head(tmp_path: Path) -> None:
    """vllm #48521: a packed copy of the table is the table, or it is refused."""
    packs: dict[str, Pack] = {"embed.weight": lambda w: pack_quantized(w, 4, 32, mixed=True)}
    stored, wanted = mixed_state(random_state(), packs | {"experts": four})
    table = "model.decoder.embed_tokens"
    words = ("weight_packed", "weight_scale", "weight_shape", "weight_g_idx")
    stored |= {f"lm_head.{word}": stored[f"{table}.{word}"].clone() for word in words}
    assert_loads_as(write(tmp_path / "tied", stored, config(rule())), wanted)
    stored["lm_head.weight_packed"] = stored["lm_head.weight_packed"] ^ 1
    refused(tmp_path / "untied", stored, config(rule()), "lm_head.weight differs from .* are tied")


def refused(path: Path, stored: dict[str, Tensor], said: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_model(write(path, stored, said), device="cpu", dtype="float32")


ORDER = torch.arange(96, dtype=torch.int32) // 32
FAULTS: list[tuple[str, Tensor | None, dict[str, Any], str]] = [
    ("weight_scale", None, {}, f"{UP}.weight_packed is packed, but {UP}.weight_scale is not there"),
    ("weight_shape", None, {}, f"{UP}.weight_shape is not there"),
    ("weight_packed", None, {}, f"no packed weight uses {UP}.weight_s"),
    ("weight_shape", torch.tensor([48, 95]), {}, r"weight_shape says \[48, 95\], but"),
    ("weight_shape", torch.tensor([47, 96]), {}, r"weight_shape says \[47, 96\], but"),
    ("weight_shape", torch.tensor([48.0, 96.0]), {}, "weight_shape is F32"),
    ("weight_shape", torch.tensor([1 << 62] * 9), {}, r"weight_shape is \[9\], but"),
    ("weight_scale", torch.ones(48, 4).half(), {}, r"weight_scale is \[48, 4\], but"),
    ("weight_scale", torch.ones(48, 3).int(), {}, "weight_scale is I32"),
    ("weight_scale", torch.full((48, 3), float("inf")), {}, "NaN or infinity"),
    ("weight_zero_point", torch.zeros(6, 3, dtype=torch.int32), {}, "says that .* is symmetric"),
    ("weight_zero_point", None, {"symmetric": False}, "weight_zero_point is not there"),
    ("weight_packed", torch.ones(48, dtype=torch.int32), {}, "neither a matrix"),
    ("weight_packed", torch.ones(48, 11, dtype=torch.int32), {}, "96 columns in 11 words"),
    ("weight_g_idx", ORDER + 1, {}, "groups from 1 to 3, but there are 3"),
    ("weight_g_idx", ORDER - 2, {}, "groups from -2 to 0, but there are 3"),
    ("weight_g_idx", ORDER[:95], {}, r"weight_g_idx is \[95\], but"),
    ("weight_g_idx", ORDER.float(), {}, "weight_g_idx is F32"),
    ("weight_scale_2", torch.ones(1), {}, f"no packed weight uses {UP}.weight_scale_2"),
    ("", None, {"group_size": 0}, "no rule of quantization_config fits"),
    ("", None, {"group_size": -3}, "no rule of quantization_config fits"),
    ("", None, {"group_size": "32"}, "no rule of quantization_config fits"),
    ("", None, {"num_bits": 5}, "no rule of quantization_config fits"),
    ("", None, {"num_bits": 1 << 70}, "no rule of quantization_config fits"),
    ("", None, {"strategy": "block"}, "no rule of quantization_config fits"),
    ("", None, {"group_size": 1 << 70}, "weight_scale is .* the config want"),
]


@pytest.mark.parametrize(("word", "value", "said", "match"), FAULTS)
@pytest.mark.fault("Q 7")
def test_what_does_not_fit_is_named(
    tmp_path: Path, word: str, value: Tensor | None, said: dict[str, Any], match: str
) -> None:
    """vllm #54444 and others: one clear error each, before a network of wrong numbers."""
    stored, _ = packed_state(random_state(), four, which=lambda n: "layers.1.experts" in n)
    if word:
        stored.pop(f"{UP}.{word}", None)
    if value is not None:
        stored[f"{UP}.{word}"] = value
    refused(tmp_path, stored, config(rule(**said)), match)


def test_a_config_without_groups_is_refused(tmp_path: Path) -> None:
    """How many bits a code has is written nowhere else."""
    stored, _ = packed_state(random_state(), four)
    refused(tmp_path, stored, config(), r"fits \(there is none\)")


@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_absurd_columns_are_refused(value: int) -> None:
    """The first shape that is read is wrong: no number is computed from it."""
    parts, _ = four(torch.randn(4, 96))
    parts["weight_shape"] = torch.tensor([4, value])
    said = config(rule())["quantization_config"]
    with pytest.raises(CheckpointError, match="columns in 12 words"):
        unpacked(
            compressed_tensors.read_scheme, said, {f"{UP}.{w}": part for w, part in parts.items()}
        )
