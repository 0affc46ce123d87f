"""The layouts of compressed-tensors, written here by the rules of its format."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model, save_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from tests.support.packed_files import CONFIG, assert_loads_as, is_packed, random_state, write
from tests.support.packing import Parts, fp8_blocks, mxfp4, nvfp4, packed_state

BLOCK = {"strategy": "block", "block_structure": [32, 32]}
UP = "model.decoder.layers.1.experts.2.up_proj"


def config(weights: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What config.json says; one group of all linear modules."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights or {"strategy": "channel"}}}
    found = {"quant_method": "compressed-tensors", "config_groups": groups, **more}
    return {"quantization_config": found}


def per_row(weight: Tensor) -> Parts:
    """As RedHat's FP8-dynamic: a scale a row, in bf16."""
    return fp8_blocks(weight, 1, weight.shape[-1], "weight_scale", torch.bfloat16)


def refused(path: Path, stored: dict[str, Tensor], said: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_model(write(path, stored, said), device="cpu", dtype="float32")


def test_fp8_with_a_scale_a_row(tmp_path: Path) -> None:
    """Experts one by one, the rest plain; no config of groups is needed."""
    stored, wanted = packed_state(random_state(), per_row)
    said = {"quantization_config": {"quant_method": "compressed-tensors"}}
    model = assert_loads_as(write(tmp_path, stored, said), wanted)
    kinds = {type(module) for module in model.modules()}
    assert {PackedLinear, PackedExperts} <= kinds


def test_fp8_with_a_scale_a_tensor_and_static_activations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An input scale, zero too, changes nothing; the log says so."""

    def pack(weight: Tensor) -> Parts:
        parts, numbers = fp8_blocks(weight, *weight.shape[-2:], "weight_scale")
        scale = parts["weight_scale"].view(1)
        return parts | {"weight_scale": scale, "input_scale": torch.zeros(1)}, numbers

    stored, wanted = packed_state(random_state(), pack)
    with caplog.at_level(logging.INFO, "dgemma"):
        assert_loads_as(write(tmp_path, stored, config({"strategy": "tensor"})), wanted)
    assert "37 scales of activations not used" in caplog.text


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_fp8_in_ragged_blocks(tmp_path: Path, kind: torch.dtype) -> None:
    """Rows of 48 and 80 are no whole blocks of 32; the block's size is the config's."""
    stored, wanted = packed_state(
        random_state(), lambda w: fp8_blocks(w, 32, 32, "weight_scale", kind)
    )
    assert stored[f"{UP}.weight_scale"].shape == (2, 3)
    assert_loads_as(write(tmp_path, stored, config(BLOCK)), wanted)


def test_groups_of_a_config_have_their_own_rules(tmp_path: Path) -> None:
    """Attention by rows, experts and dense MLP in blocks; one file."""
    state = random_state()
    rows, wanted = packed_state(state, per_row)
    blocks, more = packed_state(state, lambda w: fp8_blocks(w, 32, 32, "weight_scale"))
    stored = blocks | {name: part for name, part in rows.items() if "self_attn" in name}
    wanted = more | {name: value for name, value in wanted.items() if "attention." in name}
    groups = {
        "rest": {"targets": ["Linear"], "weights": BLOCK},
        "attention": {"targets": ["re:.*self_attn.*"], "weights": {"strategy": "channel"}},
    }
    assert_loads_as(write(tmp_path, stored, config(config_groups=groups)), wanted)


def fp4(weight: Tensor) -> Parts:
    codes, scale, outer, numbers = nvfp4(weight)
    parts = {"weight_packed": codes, "weight_scale": scale}
    parts["weight_global_scale"] = (1 / outer).view(1)
    return parts | {"input_global_scale": torch.tensor([0.0])}, numbers


@pytest.mark.fault("Q 17")
def test_self_conditioning_that_no_list_names(tmp_path: Path) -> None:
    """Model-Optimizer #2041: the quantiser's recipe did not know it. Packed or plain, it counts."""

    def which(name: str) -> bool:
        return is_packed(name) or ("self_conditioning" in name and "proj" in name)

    stored, wanted = packed_state(random_state(), per_row, which=which)
    assert any("self_conditioning" in name and name.endswith("_scale") for name in stored)
    assert_loads_as(write(tmp_path, stored, config()), wanted)


def test_nvfp4(tmp_path: Path) -> None:
    """gate and up keep their own global scale, by which one divides."""
    state = random_state()
    for name, value in state.items():
        if name.endswith("gate_up_proj"):
            value[:, : value.shape[1] // 2] *= 30
    stored, wanted = packed_state(state, fp4)
    gate = UP.replace("up_proj", "gate_proj")
    name = "weight_global_scale"
    assert (stored[f"{UP}.{name}"] / stored[f"{gate}.{name}"]).item() > 10
    assert_loads_as(write(tmp_path, stored, config({"strategy": "tensor_group"})), wanted)


def test_mxfp4(tmp_path: Path) -> None:
    """Exponents for groups of 32, no other scale."""
    sizes = replace(CONFIG, intermediate_size=96, moe_intermediate_size=32)

    def pack(weight: Tensor) -> Parts:
        codes, scale, numbers = mxfp4(weight)
        return {"weight_packed": codes, "weight_scale": scale}, numbers

    stored, wanted = packed_state(random_state(sizes), pack)
    path = write(tmp_path, stored, config({"strategy": "group", "group_size": 32}), sizes)
    assert_loads_as(path, wanted, sizes)


@pytest.mark.fault("Q 13")
def test_scales_of_a_cache_are_read_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """sglang #25792: `k_proj.k_scale` was unknown. Full layers have no v_proj."""
    stored, wanted = packed_state(random_state(), per_row)
    attention = "model.decoder.layers.{}.self_attn."
    for name in ("0.k_proj.k_scale", "0.v_proj.v_scale", "1.k_scale"):
        layer, _, rest = name.partition(".")
        stored[attention.format(layer) + rest] = torch.ones(1)
    said = config(kv_cache_scheme={"num_bits": 8, "type": "float"})
    with caplog.at_level(logging.INFO, "dgemma"):
        assert_loads_as(write(tmp_path, stored, said), wanted)
    assert "3 scales of keys and values, 1 rule for an 8-bit cache not used" in caplog.text


@pytest.mark.parametrize("prefix", ["model.decoder", "model.encoder.language_model"])
def test_lists_of_the_config_do_not_matter_where_the_files_are_clear(
    tmp_path: Path, prefix: str
) -> None:
    """Routers are listed under either prefix; a packed module that is listed is used as it is."""
    stored, wanted = packed_state(random_state(), per_row)
    entries = [f"{prefix}.layers.0.router.proj", "lm_head", "re:.*vision.*", UP]
    assert_loads_as(write(tmp_path, stored, config(ignore=entries)), wanted)


def test_a_scale_beside_a_plain_weight_is_refused(tmp_path: Path) -> None:
    """It would be lost, and the weight be wrong; the config is quoted where it says so too."""
    stored, wanted = packed_state(random_state(), per_row)
    stored[f"{UP}.weight"] = stored[f"{UP}.weight"].float()
    said = config(ignore=[UP])
    refused(tmp_path, stored, said, rf"{UP}\.weight_scale; the config says that {UP} is not packed")


@pytest.mark.fault("Q 11")
def test_a_module_that_the_config_names_may_be_plain(tmp_path: Path) -> None:
    """vllm #44796: a 16-bit module inside a packed file."""
    stored, wanted = packed_state(random_state(), per_row, which=lambda n: "experts" in n)
    assert_loads_as(write(tmp_path, stored, config()), wanted)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (f"{UP}.weight_scale", None, f"{UP}.weight is packed, but {UP}.weight_scale is not there"),
        (f"{UP}.weight_scale", torch.ones(48, 1, dtype=torch.int32), "is I32; beside"),
        (f"{UP}.weight_scale", torch.ones(47, 1), r"is \[47, 1\], but"),
        (f"{UP}.weight_scale", torch.full((48, 1), float("nan")), "NaN or infinity"),
        (f"{UP}.weight_scale_2", torch.ones(1), f"no packed weight uses {UP}.weight_scale_2"),
        (f"{UP}.weight", torch.ones(48).to(torch.float8_e4m3fn), r"shape \[48\], which is neither"),
        (f"{UP}.weight", torch.full((48, 96), 127, dtype=torch.uint8).view(torch.float8_e4m3fn),
         "NaN in its codes"),
        (f"{UP}.weight", torch.ones(48, 48).to(torch.float8_e4m3fn), "the config wants"),
    ],
)  # fmt: skip
@pytest.mark.fault("Q 7")
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, value: Tensor | None, match: str
) -> None:
    """vllm #54444 and others: a missing scale stayed uninitialised."""
    stored, _ = packed_state(random_state(), per_row)
    if value is None:
        del stored[name]
    else:
        stored[name] = value
    refused(tmp_path, stored, config(), match)


@pytest.mark.parametrize(
    ("word", "value", "match"),
    [
        ("weight_scale", None, "weight_scale is not there"),
        ("weight_global_scale", None, "weight_global_scale is not there"),
        ("weight_global_scale", torch.ones(2), "weight_global_scale is"),
        ("weight_global_scale", torch.zeros(1), "NaN or infinity"),
        ("weight_scale", torch.ones(48, 6), "weight_scale is F32"),
        ("weight_scale", torch.ones(48, 5).to(torch.float8_e4m3fn), "weight_scale is"),
        ("weight_packed", torch.ones(48, dtype=torch.uint8), "neither a matrix"),
    ],
)
def test_nvfp4_that_does_not_fit_is_named(
    tmp_path: Path, word: str, value: Tensor | None, match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(random_state(), fp4)
    del stored[f"{UP}.{word}"]
    if value is not None:
        stored[f"{UP}.{word}"] = value
    refused(tmp_path, stored, config({"strategy": "tensor_group"}), match)


def test_a_config_without_packed_weights_is_refused(tmp_path: Path) -> None:
    """The config says packed, the files are plain: one of the two is not meant."""
    stored, _ = packed_state(random_state(), per_row, which=lambda name: False)
    refused(tmp_path, stored, config(), "says that its weights are packed .*, but none is")


def test_unpacked_weights_are_saved_as_plain_ones(tmp_path: Path) -> None:
    """A network that is trained is unpacked; its new config must not say that it is packed."""
    stored, wanted = packed_state(random_state(), per_row)
    path = write(tmp_path / "packed", stored, config())
    loaded = load_model(path, device="cpu", dtype="float32", grad=True)
    saved = save_model(loaded.model, loaded.checkpoint, tmp_path / "plain")
    again = assert_loads_as(saved, wanted, replace(CONFIG, dtype="float32"))
    assert not any(isinstance(module, PackedLinear) for module in again.modules())


def test_packed_weights_are_not_saved(tmp_path: Path) -> None:
    """Codes have no name in the released layout: nothing is written, and the error says so."""
    stored, _ = packed_state(random_state(), per_row)
    path = write(tmp_path / "packed", stored, config())
    loaded = load_model(path, device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match="packed weights.*copy the files"):
        save_model(loaded.model, loaded.checkpoint, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("size", [None, [128], [0, 128], "128"])
def test_a_strange_block_is_refused(tmp_path: Path, size: object) -> None:
    """The block cannot be guessed from shapes."""
    stored, _ = packed_state(random_state(), per_row)
    said = config({"strategy": "block", "block_structure": size})
    refused(tmp_path, stored, said, "block_structure")


@pytest.mark.fault("Q 12")
def test_a_packed_head(tmp_path: Path) -> None:
    """vllm #48521. It repeats the table, bit for bit, or it is refused: they are tied here."""
    state = random_state()
    stored, wanted = packed_state(
        state, per_row, which=lambda n: n == "embed.weight" or "experts" in n
    )
    table = "model.decoder.embed_tokens"
    for word in ("weight", "weight_scale"):
        stored[f"lm_head.{word}"] = stored[f"{table}.{word}"].clone()
    assert_loads_as(write(tmp_path / "tied", stored, config()), wanted)
    stored["lm_head.weight_scale"] *= 2
    refused(tmp_path / "untied", stored, config(), "lm_head.weight differs from .* are tied")
    stored[f"{table}.weight"] = state["embed.weight"]
    del stored[f"{table}.weight_scale"]
    refused(tmp_path / "plain", stored, config(), "lm_head.weight differs from .* are tied")
