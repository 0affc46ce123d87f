"""Layouts with a scale a row: fbgemm_fp8 and Gemma's own, written here by their rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.weights.schemes import gemma as gemma_scheme
from tests.support.packed_files import assert_loads_as, is_packed, random_state, unpacked, write
from tests.support.packing import Parts, fp8_blocks, packed_state
from tests.support.packing_ints import gemma

UP = "model.decoder.layers.1.mlp.up_proj"
STACK = "model.decoder.layers.1.experts.gate_up_proj"
FBGEMM = {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}


def fbgemm(weight: Tensor) -> Parts:
    """Matrices as they are, stacks turned; the scales of a stack's rows lie beside its columns."""
    parts, numbers = fp8_blocks(weight, 1, weight.shape[-1], "weight_scale")
    if weight.dim() == 3:
        parts = {"weight": parts["weight"].transpose(1, 2), "weight_scale": parts["weight_scale"]}
        if weight.shape[1] == 96:  # gate and up
            parts["weight_scale"] = parts["weight_scale"].transpose(1, 2)
    return parts, numbers


def test_fbgemm(tmp_path: Path) -> None:
    """Stacks of experts are [E, K, R], with scales [E, 1, R] or [E, R, 1]."""
    stored, wanted = packed_state(random_state(), fbgemm, experts="bare")
    assert stored[f"{STACK}_scale"].shape == (4, 1, 96)
    assert stored["model.decoder.layers.1.experts.down_proj"].shape == (4, 48, 96)
    assert_loads_as(write(tmp_path, stored, FBGEMM), wanted)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (f"{STACK}_scale", None, "gate_up_proj_scale is not there"),
        (f"{STACK}_scale", torch.ones(4, 95), r"_scale is \[4, 95\], but"),
        (f"{UP}.weight_scale", None, "weight_scale is not there"),
        (f"{UP}.weight_scale", torch.ones(1), r"weight_scale is \[1\], but"),
    ],
)
def test_fbgemm_that_does_not_fit(
    tmp_path: Path, name: str, value: Tensor | None, match: str
) -> None:
    """vllm #54444: one clear error each."""
    stored, _ = packed_state(random_state(), fbgemm, experts="bare")
    del stored[name]
    if value is not None:
        stored[name] = value
    refused(tmp_path, stored, FBGEMM, match)


def refused(path: Path, stored: dict[str, Tensor], said: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_model(write(path, stored, said), device="cpu", dtype="float32")


def said(bits: object = 4, **patterns: object) -> dict[str, Any]:
    """Gemma's config."""
    own = {pattern: {"num_bits": number} for pattern, number in patterns.items()}
    found = {"quant_method": "gemma", "num_bits": bits, "module_quant_configs": own}
    return {"quantization_config": found}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [352, 704, 2112])
def test_gemma_numbers(bits: int, columns: int) -> None:
    """The first number is in the lowest bits."""
    parts, numbers = gemma(
        torch.randn(3, columns, generator=torch.Generator().manual_seed(1)), bits
    )
    stored = {f"{UP}.{word}": part for word, part in parts.items()}
    config = said(bits)["quantization_config"]
    assert torch.equal(unpacked(gemma_scheme.read_scheme, config, stored)[f"{UP}.weight"], numbers)


def test_gemma(tmp_path: Path) -> None:
    """4 bit, attention 8, one projection 2; the table has a name of its own."""

    def pack(weight: Tensor) -> Parts:
        return gemma(weight, {(96, 80): 2, (96, 64): 8, (96, 128): 8}.get(tuple(weight.shape), 4))

    stored, wanted = packed_state(
        random_state(), pack, which=lambda n: is_packed(n) or n == "embed.weight"
    )
    table = "model.decoder.embed_tokens."
    stored[f"{table}embedding_quantized"] = stored.pop(f"{table}weight")
    stored[f"{table}embedding_scale"] = stored.pop(f"{table}weight_scale")
    for word in ("input", "output"):
        del stored[f"{table}{word}_activation_scale"]
    config = said(4, **{r"mlp\.down_proj": 2, "o_proj": 8})
    assert_loads_as(write(tmp_path, stored, config), wanted)


@pytest.mark.parametrize(
    ("word", "value", "bits", "match"),
    [
        ("weight_scale", None, 4, "weight_scale is not there"),
        ("weight_scale", torch.ones(79), 4, r"weight_scale is \[79\], but"),
        ("weight_scale", torch.ones(80, 2), 4, r"weight_scale is \[80, 2\], but"),
        ("", None, 3, "says 3 bits; 2 and 4 are read"),
        ("", None, None, "says None bits"),
        ("", None, 2, r"is \[.*\], the config wants"),
        ("weight_zero_point", torch.ones(80), 4, "no packed weight uses .*weight_zero_point"),
    ],
)
def test_gemma_that_does_not_fit(
    tmp_path: Path, word: str, value: Tensor | None, bits: object, match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(random_state(), lambda w: gemma(w, 4))
    stored.pop(f"{UP}.{word}", None)
    if value is not None:
        stored[f"{UP}.{word}"] = value
    refused(tmp_path, stored, said(bits), match)
