"""Small checkpoints of six layers in several layouts, and networks made of them without numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dgemma.model.transformer import DiffusionGemma
from dgemma.quant.modules import swap
from dgemma.weights.files import Checkpoint, open_checkpoint
from dgemma.weights.load import packed_formats
from tests.support.packed_files import CONFIG, random_state, write
from tests.support.packing import Parts, affine, fp8_blocks, nvfp4, packed_state

DEEP = replace(CONFIG, layer_types=(*["sliding_attention"] * 5, "full_attention"))
LAYOUTS = ("plain", "bfloat16", "nvfp4", "mixed", "mlx")


def _nvfp4(weight: Tensor) -> Parts:
    codes, scale, outer, numbers = nvfp4(weight)
    return {"weight": codes, "weight_scale": scale, "weight_scale_2": outer.squeeze()}, numbers


def checkpoint(directory: Path, layout: str, seed: int = 0) -> Path:
    """Write one of `LAYOUTS`: fp32, bf16, experts in NVFP4, also attention in FP8, MLX's 4 bit."""
    sizes = DEEP
    if layout == "mlx":
        sizes = replace(DEEP, hidden_size=128, intermediate_size=64, moe_intermediate_size=64)
    state = random_state(sizes, seed)
    said = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    if layout in ("plain", "bfloat16"):
        dtype = torch.bfloat16 if layout == "bfloat16" else torch.float32
        stored, _ = packed_state(state, _nvfp4, which=lambda name: False)
        return write(directory, {n: t.to(dtype) for n, t in stored.items()}, {}, sizes)
    if layout == "mlx":
        stored, _ = packed_state(state, lambda w: affine(w, 4, 64), experts="switch_glu")
        return write(directory, stored, {"quantization": {"group_size": 64, "bits": 4}}, sizes)
    stored, _ = packed_state(state, _nvfp4, which=lambda name: "experts." in name)
    if layout == "mixed":
        said["quantization_config"]["quant_algo"] = "MIXED_PRECISION"
        more, _ = packed_state(
            state, lambda w: fp8_blocks(w, 1, w.shape[-1], "weight_scale"),
            which=lambda name: "attention." in name and "norm" not in name,
        )  # fmt: skip
        stored = {n: t for n, t in stored.items() if "self_attn" not in n} | {
            n: t for n, t in more.items() if "self_attn" in n
        }
    return write(directory, stored, said, sizes)


def empty(directory: Path) -> tuple[DiffusionGemma, Checkpoint]:
    """The network on the meta device with its packed modules, and the open checkpoint."""
    found = open_checkpoint(directory)
    with torch.device("meta"):
        model = DiffusionGemma(found.config)
    swap(model, packed_formats(model, found))
    return model, found
