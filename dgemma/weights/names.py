"""The names of tensors: one table, used in both directions.

Left the name in the released checkpoint, right ours; `N` stands for a layer's number. Knows names
only, no shapes and no files. Names that `transformers` ties to others (`lm_head.weight` and most
of `model.encoder.language_model.*`) are in its module tree but never in its files, so not here.
"""

from __future__ import annotations

import re

TEXT: tuple[tuple[str, str], ...] = (
    ("model.decoder.embed_tokens.weight", "embed.weight"),
    ("model.decoder.norm.weight", "norm.weight"),
    ("model.decoder.self_conditioning.pre_norm.weight", "self_conditioning.pre_norm.weight"),
    ("model.decoder.self_conditioning.gate_proj.weight", "self_conditioning.gate_proj.weight"),
    ("model.decoder.self_conditioning.up_proj.weight", "self_conditioning.up_proj.weight"),
    ("model.decoder.self_conditioning.down_proj.weight", "self_conditioning.down_proj.weight"),
    ("model.encoder.language_model.layers.N.layer_scalar", "layers.N.encode_scalar"),
    *(
        (f"model.decoder.layers.N.{theirs}", f"layers.N.{ours}")
        for theirs, ours in (
            ("layer_scalar", "denoise_scalar"),
            ("input_layernorm.weight", "input_norm.weight"),
            ("post_attention_layernorm.weight", "post_attention_norm.weight"),
            ("pre_feedforward_layernorm.weight", "pre_feedforward_norm.weight"),
            ("pre_feedforward_layernorm_2.weight", "pre_feedforward_norm_2.weight"),
            ("post_feedforward_layernorm.weight", "post_feedforward_norm.weight"),
            ("post_feedforward_layernorm_1.weight", "post_feedforward_norm_1.weight"),
            ("post_feedforward_layernorm_2.weight", "post_feedforward_norm_2.weight"),
            ("self_attn.q_proj.weight", "attention.q_proj.weight"),
            ("self_attn.k_proj.weight", "attention.k_proj.weight"),
            ("self_attn.v_proj.weight", "attention.v_proj.weight"),
            ("self_attn.o_proj.weight", "attention.o_proj.weight"),
            ("self_attn.q_norm.weight", "attention.q_norm.weight"),
            ("self_attn.k_norm.weight", "attention.k_norm.weight"),
            ("mlp.gate_proj.weight", "mlp.gate_proj.weight"),
            ("mlp.up_proj.weight", "mlp.up_proj.weight"),
            ("mlp.down_proj.weight", "mlp.down_proj.weight"),
            ("router.proj.weight", "router.proj.weight"),
            ("router.scale", "router.scale"),
            ("router.per_expert_scale", "router.per_expert_scale"),
            ("experts.gate_up_proj", "experts.gate_up_proj"),
            ("experts.down_proj", "experts.down_proj"),
        )
    ),
)

VISION: tuple[tuple[str, str], ...] = (
    ("model.encoder.embed_vision.embedding_projection.weight", "vision.projection.weight"),
    *(
        (f"model.encoder.vision_tower.{name}", f"vision.tower.{name}")
        for name in (
            "patch_embedder.input_proj.weight",
            "patch_embedder.position_embedding_table",
            "std_bias",
            "std_scale",
            "encoder.layers.N.input_layernorm.weight",
            "encoder.layers.N.post_attention_layernorm.weight",
            "encoder.layers.N.pre_feedforward_layernorm.weight",
            "encoder.layers.N.post_feedforward_layernorm.weight",
            "encoder.layers.N.self_attn.q_norm.weight",
            "encoder.layers.N.self_attn.k_norm.weight",
            *(
                f"encoder.layers.N.{linear}.{part}"
                for linear in (
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                    "self_attn.v_proj",
                    "self_attn.o_proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.down_proj",
                )
                # The last four exist where the vision config says `use_clipped_linears`.
                for part in ("linear.weight", "input_min", "input_max", "output_min", "output_max")
            ),
        )
    ),
)

_OURS = dict(TEXT + VISION)
_THEIRS = {ours: theirs for theirs, ours in TEXT + VISION}
_LAYER = re.compile(r"(?<=layers\.)(0|[1-9]\d*)(?=\.)")


def pattern(name: str) -> tuple[str, str]:
    """A name with its layer number as `N`, and the number ("" where there is none)."""
    found = _LAYER.search(name)
    return (_LAYER.sub("N", name, count=1), found[0]) if found else (name, "")


def to_ours(name: str) -> str | None:
    """Our name of a checkpoint's tensor; None when the table does not know it."""
    known, layer = pattern(name)
    ours = _OURS.get(known)
    if ours is None or (".N." in ours) != bool(layer):
        return None
    return ours.replace(".N.", f".{layer}.")


def to_checkpoint(name: str) -> str:
    """The checkpoint's name of one of our tensors.

    Raises:
        KeyError: a parameter that the table lacks: our own mistake.
    """
    known, layer = pattern(name)
    return _THEIRS[known].replace(".N.", f".{layer}.")


def is_vision(ours: str) -> bool:
    """Whether one of our names belongs to the vision part, which is left aside for now."""
    return ours.startswith("vision.")
