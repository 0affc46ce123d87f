"""The oracle: `transformers`' DiffusionGemma beside ours, with the same random weights.

`tiny_pair` makes the two networks; `dgemma.evaluate.parity` runs the oracle's own generation loop
with its global draws replaced by our counter-based ones. `transformers` takes seconds to import, so
functions import it: see the mark `oracle`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "top_k_experts": 2,
    "num_attention_heads": 4,
    "layer_types": ("sliding_attention", "sliding_attention", "full_attention"),
    "head_dim": 16,
    "global_head_dim": 32,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "canvas_length": 8,
}
NAMES = (
    ("embed_tokens", "embed"),
    ("self_attn", "attention"),
    ("input_layernorm", "input_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "pre_feedforward_norm"),
    ("post_feedforward_layernorm", "post_feedforward_norm"),
)


def tiny_pair(
    seed: int, *, gain: float = 1.5, sharpness: float = 1.0, **sizes: Any
) -> tuple[Any, DiffusionGemma]:
    """The oracle's network and ours with the same random numbers in every weight.

    Args:
        seed: of the weights.
        gain: of every matrix but the embedding. At 1.5 the loop through self-conditioning is
            chaotic: a difference of 1e-6 grows tenfold a step, whoever computes it; at 0.7 it
            stays where it is, so two right implementations agree for any number of steps.
        sharpness: factor of the final norm, so of the logits before the cap: random networks are
            unsure, and an unsure one never stops early.
        sizes: what differs from `SIZES`.

    Returns:
        Both in fp32 and eval mode; the oracle with eager attention.
    """
    unknown = sizes.keys() - SIZES.keys()
    assert not unknown, f"unknown sizes {unknown}"
    sizes = SIZES | sizes
    theirs = _oracle_model(sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if "vision" in name or "inv_freq" in name or "embed_scale" in name:
                continue
            noise = torch.randn(value.shape, generator=generator)
            # Norms, router scales and layer scalars start at one: random ones tell them apart.
            std = (1.5 if "embed_tokens" in name else gain) * value.shape[-1] ** -0.5
            value.copy_(1 + 0.3 * noise if value.dim() < 2 else std * noise)
        theirs.model.decoder.norm.weight.mul_(sharpness)
    ours = DiffusionGemma(_our_config(sizes))
    ours.load_state_dict(_our_names(theirs.state_dict()), strict=True)
    return theirs, ours.eval()


def _oracle_model(sizes: dict[str, Any]) -> Any:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, Gemma4VisionConfig
    from transformers.models.diffusion_gemma import modeling_diffusion_gemma as modeling

    text = {k: v for k, v in sizes.items() if k != "canvas_length"}
    text |= {
        "layer_types": list(sizes["layer_types"]),
        "num_hidden_layers": len(sizes["layer_types"]),
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 16,
    }
    heads: dict[str, Any] = {"num_attention_heads": 1, "num_key_value_heads": 1}
    top = sizes["vocab_size"]
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**text),
        vision_config=Gemma4VisionConfig(**vision, **heads),
        canvas_length=sizes["canvas_length"],
        image_token_id=top - 2, boi_token_id=top - 3, eoi_token_id=top - 4,
    )  # fmt: skip
    model: Any = modeling.DiffusionGemmaForBlockDiffusion(config)
    model.eval().float()
    model.set_attn_implementation("eager")
    return model


def _our_config(sizes: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        sliding=AttentionShape(
            head_dim=sizes["head_dim"],
            num_key_value_heads=sizes["num_key_value_heads"],
            rope_theta=1e4,
        ),
        full=AttentionShape(
            head_dim=sizes["global_head_dim"],
            num_key_value_heads=sizes["num_global_key_value_heads"],
            rope_theta=1e6,
            partial_rotary_factor=0.25,
        ),
        image_token_id=sizes["vocab_size"] - 2,
        **{k: v for k, v in sizes.items() if "head_dim" not in k and "key_value" not in k},
    )


def _our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in weights.items():
        if name.startswith("model.decoder.") and "inv_freq" not in name:
            name = name.removeprefix("model.decoder.").replace("layer_scalar", "denoise_scalar")
            for theirs, ours in NAMES:
                name = name.replace(theirs, ours)
            out[name] = value
        elif "encoder.language_model.layers" in name and name.endswith("layer_scalar"):
            name = name.removeprefix("model.encoder.language_model.")
            out[name.replace("layer_scalar", "encode_scalar")] = value
    return out


def randomise(model: torch.nn.Module) -> None:
    """Random numbers in everything that is saved, buffers too: no two tensors can be confused."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
