"""The layouts of NVIDIA's modelopt, written here by the rules of its formats."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from tests.support.packed_files import CONFIG, assert_loads_as, random_state, write
from tests.support.packing import Parts, fp8_blocks, mxfp4, nvfp4, packed_state

UP = "model.decoder.layers.1.experts.2.up_proj"
GLOBS = ["*mlp*", "*router*", "*self_attn*", "lm_head", "*vision_tower*"]


def config(algorithm: str = "NVFP4", **more: Any) -> dict[str, Any]:
    """What config.json says."""
    return {"quantization_config": {"quant_method": "modelopt", "quant_algo": algorithm, **more}}


def fp4(weight: Tensor) -> Parts:
    """Codes, two scales, and one for activations."""
    codes, scale, outer, numbers = nvfp4(weight)
    parts = {"weight": codes, "weight_scale": scale, "weight_scale_2": outer.squeeze()}
    return parts | {"input_scale": torch.tensor(0.01)}, numbers


def only_experts(name: str) -> bool:
    """What NVIDIA's file has packed."""
    return "experts." in name


@pytest.mark.parametrize("experts", ["each", "bare", "stacks", "switch_glu"])
def test_nvfp4_experts(tmp_path: Path, experts: str) -> None:
    """As NVIDIA's file: only experts, per expert and in stacks; gate and up keep their scales."""
    state = random_state()
    for name, value in state.items():
        if name.endswith("gate_up_proj"):
            value[:, : value.shape[1] // 2] *= 30
    stored, wanted = packed_state(state, fp4, experts=experts, which=only_experts)
    if experts == "bare":  # modelopt keeps the word "weight" in these
        stored = {
            n.replace("proj_scale", "proj_weight_scale") if "experts" in n else n: t
            for n, t in stored.items()
        }
    assert_loads_as(write(tmp_path, stored, config(ignore=GLOBS, group_size=16)), wanted)


@pytest.mark.parametrize("value", [None, 0.0, float("inf"), 7.0])
@pytest.mark.fault("Q 6")
def test_input_scales_change_nothing(tmp_path: Path, value: float | None) -> None:
    """vllm #45212, #45320: an expert that calibration never reached gave infinity and pads."""
    stored, wanted = packed_state(random_state(), fp4)
    for name in [n for n in stored if n.endswith("input_scale")]:
        if value is None:
            del stored[name]
        else:
            stored[name] = torch.tensor(value)
    assert_loads_as(write(tmp_path, stored, config()), wanted)


def test_a_file_that_mixes_layouts(tmp_path: Path) -> None:
    """Experts in NVFP4, attention and dense MLP in FP8 by tensor or by row: each by its dtype."""
    state = random_state()

    def pack(weight: Tensor) -> Parts:
        if weight.shape[0] != 80:
            return fp8_blocks(weight, *weight.shape[-2:], "weight_scale")
        return fp8_blocks(weight, 1, weight.shape[-1], "weight_scale")

    dense, wanted = packed_state(state, pack)
    packed, more = packed_state(state, fp4)
    stored = {n: t for n, t in dense.items() if ".experts." not in n}
    stored |= {n: t for n, t in packed.items() if ".experts." in n}
    wanted |= {n: t for n, t in more.items() if "experts." in n}
    assert_loads_as(write(tmp_path, stored, config("MIXED_PRECISION")), wanted)


def test_mxfp4(tmp_path: Path) -> None:
    """Exponents in groups of 32, no other scale."""
    sizes = replace(CONFIG, intermediate_size=96, moe_intermediate_size=32)

    def pack(weight: Tensor) -> Parts:
        codes, scale, numbers = mxfp4(weight)
        return {"weight": codes, "weight_scale": scale}, numbers

    stored, wanted = packed_state(random_state(sizes), pack)
    assert_loads_as(write(tmp_path, stored, config("W4A8_MXFP4_FP8"), sizes), wanted, sizes)


def test_the_quantiser_s_own_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`hf_quant_config.json` counts where config.json says nothing."""
    stored, wanted = packed_state(random_state(), fp4, which=only_experts)
    path = write(tmp_path, stored, {})
    own = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": GLOBS}
    said = json.dumps({"producer": {"name": "modelopt"}, "quantization": own})
    (path / "hf_quant_config.json").write_text(said)
    with caplog.at_level(logging.INFO, "dgemma"):
        assert_loads_as(path, wanted)
    assert "1 rule for an 8-bit cache not used" in caplog.text


@pytest.mark.parametrize(
    ("word", "value", "match"),
    [
        ("weight_scale", None, f"{UP}.weight is packed, but {UP}.weight_scale is not there"),
        ("weight_scale_2", None, f"{UP}.weight is packed, but {UP}.weight_scale_2 is not there"),
        ("weight_scale", torch.ones(48, 6).bfloat16(), "weight_scale is BF16"),
        ("weight_scale", torch.ones(48, 7).to(torch.float8_e4m3fn), r"is \[48, 7\], but"),
        ("weight_scale_2", torch.ones(3), r"is \[3\], but"),
        ("weight_scale_2", torch.tensor(float("nan")), "NaN or infinity"),
        ("weight", torch.ones(48, 47, dtype=torch.uint8), "want"),
        ("pre_quant_scale", torch.ones(96), f"no packed weight uses {UP}.pre_quant_scale"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, word: str, value: Tensor | None, match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(random_state(), fp4)
    stored.pop(f"{UP}.{word}", None)
    if value is not None:
        stored[f"{UP}.{word}"] = value
    with pytest.raises(CheckpointError, match=match):
        load_model(write(tmp_path, stored, config()), device="cpu", dtype="float32")
