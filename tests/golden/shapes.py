"""Two random networks for golden tokens, made by recipe and written in the released layout.

Every number is a sum of integers times a power of two or a square root, so each CPU makes the same
bits; a normal draw would go through its own logarithm. The names and the config are those of the
released files, so nothing here depends on how the package calls its parts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# Random networks are unsure and would never stop: "sharpness" is a factor of the final norm, so of
# the logits, and a small "gain" of the matrices keeps the loop through self-conditioning from
# growing a difference. "loudness" is the gain of the embedding.
DENSE: dict[str, Any] = {
    "seed": 3, "gain": 0.5, "loudness": 1.5, "sharpness": 8.0, "canvas_length": 16,
    "vocab_size": 160, "hidden_size": 48, "intermediate_size": 40, "moe_intermediate_size": 16,
    "num_experts": 2, "top_k_experts": 2, "num_attention_heads": 4, "head_dim": 16,
    "global_head_dim": 16, "num_key_value_heads": 2, "num_global_key_value_heads": 2,
    "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
"""Few layers, a small vocabulary, and every expert is always used."""

TILED: dict[str, Any] = {
    "seed": 4, "gain": 0.5, "loudness": 1.5, "sharpness": 4.0, "canvas_length": 16,
    "vocab_size": 4500, "hidden_size": 128, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_experts": 4, "top_k_experts": 2, "num_attention_heads": 4, "head_dim": 16,
    "global_head_dim": 32, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
"""A vocabulary above 4096, which is read in tiles; two head sizes, a window that is outgrown."""

SHAPES = {"dense": DENSE, "tiled": TILED}
DRAWS, SPREAD = 4, 1 << 12


def write_shape(name: str, directory: Path) -> Path:
    """Write the random checkpoint `name` into a new directory."""
    shape = SHAPES[name]
    text = {k: v for k, v in shape.items() if k not in ("seed", "gain", "loudness", "sharpness")}
    canvas = text.pop("canvas_length")
    text |= {
        "model_type": "diffusion_gemma_text", "max_position_embeddings": 2048,
        "num_hidden_layers": len(shape["layer_types"]),
    }  # fmt: skip
    config = {
        "model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "canvas_length": canvas, "dtype": "float32", "text_config": text, "vision_config": None,
        "image_token_id": shape["vocab_size"] - 2,
    }  # fmt: skip
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(shape["seed"])
    tensors = {key: draw(key, size, shape, generator) for key, size in sizes(shape).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def draw(
    name: str, size: tuple[int, ...], shape: dict[str, Any], generator: torch.Generator
) -> Tensor:
    """About normal numbers: a matrix by its inputs, anything else around one."""
    whole = torch.zeros(size, dtype=torch.int64)
    for _ in range(DRAWS):
        whole += torch.randint(-SPREAD, SPREAD + 1, size, generator=generator)
    noise = whole.double() / (SPREAD * math.sqrt(DRAWS / 3))
    if len(size) < 2:
        factor = shape["sharpness"] if name == "model.decoder.norm.weight" else 1.0
        return (factor * (1 + 0.3 * noise)).float()
    gain = shape["loudness"] if "embed_tokens" in name else shape["gain"]
    return (gain / math.sqrt(size[-1]) * noise).float()


def sizes(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The released names of all tensors with their sizes."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    out: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (shape["vocab_size"], width),
        "norm.weight": (width,),
        "self_conditioning.pre_norm.weight": (width,),
        **_gated("self_conditioning.", width, inner),
    }
    for number, kind in enumerate(shape["layer_types"]):
        out |= {f"layers.{number}.{k}": v for k, v in _layer(shape, kind).items()}
    out = {f"model.decoder.{name}": size for name, size in out.items()}
    for number in range(len(shape["layer_types"])):
        out[f"model.encoder.language_model.layers.{number}.layer_scalar"] = (1,)
    return out


def _gated(prefix: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (width, inner),
    }


def _layer(shape: dict[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    width, experts = shape["hidden_size"], shape["num_experts"]
    inner, heads = shape["moe_intermediate_size"], shape["num_attention_heads"]
    full = kind == "full_attention"
    head = shape["global_head_dim" if full else "head_dim"]
    keys = head * shape["num_global_key_value_heads" if full else "num_key_value_heads"]
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    out: dict[str, tuple[int, ...]] = {f"{name}_layernorm.weight": (width,) for name in norms}
    for name in ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1",
                 "post_feedforward_layernorm_2"):  # fmt: skip
        out[f"{name}.weight"] = (width,)
    out |= _gated("mlp.", width, shape["intermediate_size"])
    out |= {
        "layer_scalar": (1,),
        "self_attn.q_proj.weight": (heads * head, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "router.proj.weight": (experts, width),
        "router.scale": (width,),
        "router.per_expert_scale": (experts,),
        "experts.gate_up_proj": (experts, 2 * inner, width),
        "experts.down_proj": (experts, width, inner),
    }
    if not full:
        out["self_attn.v_proj.weight"] = (keys, width)
    return out
