"""The layout "fp8" of transformers, written here by the rules of its format."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.loading import load_model
from dgemma.weights.schemes import fp8
from dgemma.weights.source import StoredTensor
from tests.support.packed_files import assert_loads_as, random_state, write
from tests.support.packing import Parts, fp8_blocks, packed_state

MLP = "model.decoder.layers.0.mlp.up_proj"


def config(block: object = (32, 32), **more: Any) -> dict[str, Any]:
    """What config.json says."""
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": block, **more}}


@pytest.mark.parametrize("experts", ["each", "bare", "stacks"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_blocks(tmp_path: Path, experts: str, kind: torch.dtype) -> None:
    """`weight_scale_inv` multiplies, in spite of its name; the last blocks are cut short."""

    def pack(weight: Tensor) -> Parts:
        return fp8_blocks(weight, 32, 32, "weight_scale_inv", kind)

    stored, wanted = packed_state(random_state(), pack, experts=experts)
    if experts == "bare":
        assert "model.decoder.layers.0.experts.gate_up_proj_scale_inv" in stored
    assert_loads_as(write(tmp_path, stored, config(modules_to_not_convert=["lm_head"])), wanted)


def test_exponents_and_fp32_in_one_stack(tmp_path: Path) -> None:
    """Torch joins no float8 with another kind: some experts' scales are exponents alone."""
    kinds = itertools.cycle((torch.float8_e8m0fnu, torch.float32, torch.float32))

    def pack(weight: Tensor) -> Parts:
        return fp8_blocks(weight, 32, 32, "weight_scale_inv", next(kinds))

    stored, wanted = packed_state(random_state(), pack)
    assert_loads_as(write(tmp_path, stored, config()), wanted)


@pytest.mark.parametrize("word", ["weight_scale_inv", "weight_scale"])
@pytest.mark.fault("Q 14")
def test_both_names_of_a_scale_multiply(tmp_path: Path, word: str) -> None:
    """transformers #45699: one of them was taken for the inverse. Static activations are plain."""

    def pack(weight: Tensor) -> Parts:
        parts, numbers = fp8_blocks(weight, *weight.shape[-2:], word)
        return parts | {word: parts[word].view(()), "activation_scale": torch.tensor(3.0)}, numbers

    stored, wanted = packed_state(random_state(), pack)
    said = config(None, activation_scheme="static")
    assert_loads_as(write(tmp_path, stored, said), wanted)


@pytest.mark.fault("Q 14", "Q 15")
def test_golden_values() -> None:
    """[704, 2816] in blocks of 128: [6, 22] scales, and the last rows have half a block."""
    name = "model.decoder.layers.0.experts.0.up_proj.weight"
    scale = torch.arange(1, 6 * 22 + 1).view(6, 22).float()
    stored = {
        name: StoredTensor("F8_E4M3", (704, 2816), 704 * 2816),
        f"{name}_scale_inv": StoredTensor("F32", (6, 22), 6 * 22 * 4),
    }
    held = {name: torch.full((704, 2816), 0.5).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    group = fp8.read_scheme({"weight_block_size": [128, 128]}, stored, held.__getitem__)[name]
    numbers = group.build(held.__getitem__).dequantise()
    assert numbers.shape == (704, 2816)
    assert [numbers[r, c].item() for r, c in ((0, 0), (127, 127), (128, 0), (703, 2815))] == [
        0.5, 0.5, 11.5, 66.0
    ]  # fmt: skip
    assert numbers[640:].unique().tolist() == [n / 2 for n in range(111, 133)]


@pytest.mark.parametrize(
    ("change", "block", "match"),
    [
        ({f"{MLP}.weight_scale_inv": None}, (32, 32), "weight_scale_inv is not there"),
        ({f"{MLP}.weight_scale_inv": torch.ones(2, 3)}, (32, 32), r"is \[2, 3\], but"),
        ({f"{MLP}.weight_scale_inv": torch.ones(3, 3).long()}, (32, 32), "is I64; beside"),
        ({f"{MLP}.weight_scale": torch.ones(3, 3)}, (32, 32), "no packed weight uses"),
        ({}, (128, 128), "the config want"),
        ({}, (0, 128), "weight_block_size is"),
        ({}, [1], "weight_block_size is"),
        (
            {f"{MLP}.weight_scale_inv": torch.full((3, 3), 255, dtype=torch.uint8)},
            (32, 32),
            "NaN in its codes or scales",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Tensor | None], block: object, match: str
) -> None:
    """One clear error each."""
    stored, _ = packed_state(random_state(), lambda w: fp8_blocks(w, 32, 32, "weight_scale_inv"))
    kept = {n: t for n, t in (stored | change).items() if t is not None}
    with pytest.raises(CheckpointError, match=match):
        load_model(write(tmp_path, kept, config(block)), device="cpu", dtype="float32")
