"""The layouts of MLX, written here by the rules of its format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from tests.support.packed_files import CONFIG, assert_loads_as, random_state, write
from tests.support.packing import Parts, affine, fp8_blocks, mxfp4, nvfp4, packed_state

SIZES = replace(CONFIG, hidden_size=128, intermediate_size=192, moe_intermediate_size=64)
UP = "model.decoder.layers.1.mlp.up_proj"


def everything(name: str) -> bool:
    """What mlx-vlm packs: all linear modules, the table, the router, self-conditioning."""
    return (
        "norm" not in name
        and name.endswith(("proj.weight", "gate_up_proj", "down_proj"))
        or (name == "embed.weight")
    )


def words(codes: Tensor) -> Tensor:
    """Bytes as words of 32 bit, the lowest byte first."""
    return codes.contiguous().view(torch.uint32)


def mxfp8(weight: Tensor) -> Parts:
    """e4m3 in groups of 32 with exponents."""
    parts, numbers = fp8_blocks(weight, 1, 32, "scales", torch.float8_e8m0fnu)
    codes = words(parts["weight"].view(torch.uint8))
    return {"weight": codes, "scales": parts["scales"].view(torch.uint8)}, numbers


def mxfp4_words(weight: Tensor) -> Parts:
    """e2m1 in groups of 32 with exponents."""
    codes, scale, numbers = mxfp4(weight)
    return {"weight": words(codes), "scales": scale}, numbers


def nvfp4_words(weight: Tensor) -> Parts:
    """e2m1 in groups of 16 with scales in e4m3, none for the tensor."""
    codes, scale, _, numbers = nvfp4(weight, torch.ones(1, 1))
    return {"weight": words(codes), "scales": scale.view(torch.uint8)}, numbers


PACKS = {"mxfp4": mxfp4_words, "mxfp8": mxfp8, "nvfp4": nvfp4_words}


def config(mode: str = "affine", bits: int = 4, group: int = 64, **modules: Any) -> dict[str, Any]:
    """What config.json says, twice, as mlx-vlm writes it."""
    rule = {"group_size": group, "bits": bits, "mode": mode, **modules}
    return {"quantization": rule, "quantization_config": rule}


def own(rule: object, *named: str) -> dict[str, object]:
    """An entry for every module whose name holds one of some words."""
    stored, _ = packed_state(random_state(SIZES), mxfp8, experts="stacks", which=everything)
    modules = (n.removesuffix(".scales") for n in stored if n.endswith(".scales"))
    return {module: rule for module in modules if any(word in module for word in named)}


@pytest.mark.parametrize("experts", ["stacks", "switch_glu", "switch_mlp"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine(tmp_path: Path, bits: int, experts: str) -> None:
    """Embedding, router and self-conditioning too; stacks as mlx-vlm and mlx-lm name them."""
    group = 32 if bits % 2 else 64
    stored, wanted = packed_state(
        random_state(SIZES), lambda w: affine(w, bits, group), experts=experts, which=everything
    )
    path = write(tmp_path, stored, config(bits=bits, group=group), SIZES)
    kinds = {type(module) for module in assert_loads_as(path, wanted, SIZES).modules()}
    assert {PackedLinear, PackedExperts} <= kinds


def test_modules_have_rules_of_their_own(tmp_path: Path) -> None:
    """mlx-community's 4 bit file: experts 4 bit; embedding, attention, MLP and router 8 bit."""

    def pack(weight: Tensor) -> Parts:
        return affine(weight, 4 if weight.dim() == 3 else 8, 64)

    stored, wanted = packed_state(random_state(SIZES), pack, experts="stacks", which=everything)
    rules = own({"group_size": 64, "bits": 8}, "embed", "self_attn", "mlp.", "router", "self_cond")
    path = write(tmp_path, stored, config(**rules), SIZES)
    assert_loads_as(path, wanted, SIZES)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups(tmp_path: Path, group: int) -> None:
    """Group 128 where rows are 128 wide."""
    stored, wanted = packed_state(
        random_state(SIZES), lambda w: affine(w, 4, group),
        which=lambda n: n == "embed.weight" or "q_proj.weight" in n,
    )  # fmt: skip
    path = write(tmp_path, stored, config(group=group, **own(False, "experts")), SIZES)
    assert_loads_as(path, wanted, SIZES)


@pytest.mark.parametrize("mode", PACKS)
@pytest.mark.fault("Q 3")
def test_modes(tmp_path: Path, mode: str) -> None:
    """mlx-vlm #1350, #1356: a table in mxfp4 was read as affine. Every mode, with the table."""
    stored, wanted = packed_state(
        random_state(SIZES), PACKS[mode], experts="stacks", which=everything
    )
    bits, group = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}[mode]
    assert_loads_as(write(tmp_path, stored, config(mode, bits, group), SIZES), wanted, SIZES)


def test_a_mode_has_usual_sizes(tmp_path: Path) -> None:
    """A config may name the mode alone."""
    stored, wanted = packed_state(random_state(SIZES), nvfp4_words, experts="stacks")
    said = {"quantization": {"mode": "nvfp4"}}
    assert_loads_as(write(tmp_path, stored, said, SIZES), wanted, SIZES)


@pytest.mark.parametrize(
    ("change", "said", "match"),
    [
        ({f"{UP}.biases": None}, {}, f"{UP}.weight is packed, but {UP}.biases is not there"),
        ({f"{UP}.scales": None}, {}, f"no packed weight uses {UP}.biases"),
        ({f"{UP}.weight": None}, {}, f"{UP}.scales is packed, but {UP}.weight is not there"),
        ({f"{UP}.weight": torch.ones(192, 128)}, {}, "weight is F32"),
        ({f"{UP}.scales": torch.ones(192, 3)}, {}, r"is \[192, 3\], but"),
        ({f"{UP}.scales": torch.ones(192, 2).long()}, {}, "scales is I64"),
        ({f"{UP}.weight": torch.ones(192, 15, dtype=torch.uint32)}, {}, "15 words"),
        ({}, {UP: {"bits": 8, "group_size": 64}}, f"{UP}.scales is "),
        ({}, {UP: False}, f"says that {UP} is not packed, but {UP}.scales is there"),
        ({}, {UP: {"bits": 7, "group_size": 64}}, "7 bits"),
        ({}, {UP: {"bits": [4], "group_size": 64}}, "not supported"),
        ({}, {UP: {"bits": 4.0, "group_size": 64}}, "4.0 bits"),
        ({}, {UP: {"bits": 4, "group_size": 16}}, "groups of 16, which"),
        ({}, {UP: {"bits": 4, "group_size": 64, "mode": "int"}}, "mode int"),
        ({}, {UP: {"bits": 4, "group_size": 64, "mode": "mxfp4"}}, "not supported"),
        ({}, {UP: {"mode": "mxfp4"}}, f"{UP}.scales is BF16"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Tensor | None], said: dict[str, object], match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(random_state(SIZES), lambda w: affine(w, 4, 64), experts="stacks")
    kept = {n: t for n, t in (stored | change).items() if t is not None}
    with pytest.raises(CheckpointError, match=match):
        load_model(write(tmp_path, kept, config(**said), SIZES), device="cpu", dtype="float32")


def test_biases_without_a_meaning_are_refused(tmp_path: Path) -> None:
    """A mode without biases, and biases in the file: one of the two is wrong."""
    stored, _ = packed_state(random_state(SIZES), mxfp4_words, experts="stacks")
    stored[f"{UP}.biases"] = torch.ones(192, 4)
    with pytest.raises(CheckpointError, match=f"no packed weight uses {UP}.biases"):
        path = write(tmp_path, stored, config("mxfp4", 4, 32), SIZES)
        load_model(path, device="cpu", dtype="float32")
