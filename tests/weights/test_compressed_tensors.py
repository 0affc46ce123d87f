"""The layouts of compressed-tensors, written here by the rules of its format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.quant.modules import PackedExperts, PackedLinear
from tests.support.packed_files import (
    assert_loads_as,
    modules_of,
    random_state,
    rest_of,
    unpacked_state,
    write,
)

FP8 = {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}


def float8(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file, and what its codes mean: one scale a row, in bf16."""
    stored, numbers = {}, {}
    for module, (_, weight) in modules_of(state).items():
        scale = (weight.abs().amax(-1, keepdim=True) / 448).bfloat16()
        codes = (weight / scale.float()).to(torch.float8_e4m3fn)
        stored |= {f"{module}.weight": codes, f"{module}.weight_scale": scale}
        numbers[module] = codes.float() * scale.float()
    return stored, numbers


def test_fp8_with_a_scale_a_row(tmp_path: Path) -> None:
    """As RedHat's FP8-dynamic: experts one by one, scales in bf16, the rest plain."""
    state = random_state()
    stored, numbers = float8(state)
    path = write(tmp_path, stored | rest_of(state), FP8)
    model = assert_loads_as(path, unpacked_state(state, numbers))
    kinds = {type(module) for module in model.modules()}
    assert {PackedLinear, PackedExperts} <= kinds


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    """vllm #54444: it stayed uninitialised."""
    state = random_state()
    stored, _ = float8(state)
    name = "model.decoder.layers.1.experts.2.up_proj.weight_scale"
    del stored[name]
    with pytest.raises(CheckpointError, match=name):
        load_model(write(tmp_path, stored | rest_of(state), FP8), device="cpu", dtype="float32")
