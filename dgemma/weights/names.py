"""The names of tensors: one table, used in both directions.

Left the name in the released checkpoint, right ours; `N` is a layer's number. Other programs cut
some of ours into several tensors: `SPLIT` has their names. Knows names and parts, no files. Names
that `transformers` ties to others (`lm_head.weight` and most of `model.encoder.language_model.*`)
are in its module tree but never in its files, so not in the table; `copy_of` knows them, because
other trainers write them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
                # The last four exist if the vision config says `use_clipped_linears`.
                for part in ("linear.weight", "input_min", "input_max", "output_min", "output_max")
            ),
        )
    ),
)

SPLIT: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (f"layers.N.experts.{ours}", tuple(f"model.decoder.layers.N.{part}" for part in parts))
    for ours, parts in (
        ("gate_up_proj", ("experts.E.gate_proj", "experts.E.up_proj")),
        ("down_proj", ("experts.E.down_proj",)),
        ("gate_up_proj", ("experts.switch_glu.gate_proj", "experts.switch_glu.up_proj")),
        ("down_proj", ("experts.switch_glu.down_proj",)),
        ("gate_up_proj", ("mlp.switch_mlp.gate_proj", "mlp.switch_mlp.up_proj")),
        ("down_proj", ("mlp.switch_mlp.down_proj",)),
        ("gate_up_proj", ("experts.gate_up_proj",)),
        ("down_proj", ("experts.down_proj",)),
    )
)
"""One of our stacks, and the names of its parts in other files, the first rows first; `.weight` or
the like follows. `E` is an expert's number: quantisers write experts one by one. `switch_glu`,
`switch_mlp`, and a whole stack with `.weight`, are of programs that use MLX."""

Index = tuple[int | slice, ...]
"""Which part of one of our tensors a tensor of a file is; empty: all of it."""

_OURS = dict(TEXT + VISION)
_THEIRS = {ours: theirs for theirs, ours in TEXT + VISION}
_MODULES = {o.removesuffix(".weight"): t.removesuffix(".weight") for o, t in _THEIRS.items()}
_LAYER = re.compile(r"(?<=layers\.)(0|[1-9]\d*)(?=\.)")


def pattern(name: str) -> tuple[str, str]:
    """A name with its layer number as `N`, and the number ("" if there is none)."""
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
    """The checkpoint's name of one of our tensors, as it is released and as we write it.

    The tensors of a packed module (`weight_scale` and the like) keep their last word; the rest is
    the module's name in the files.

    Raises:
        KeyError: a parameter that the table lacks: our own mistake.
    """
    known, layer = pattern(name)
    theirs = _THEIRS.get(known)
    if theirs is None:
        module, _, word = known.rpartition(".")
        theirs = f"{_MODULES[module]}.{word}"
    return theirs.replace(".N.", f".{layer}.")


def copy_of(name: str) -> str | None:
    """The tensor of a checkpoint that this one repeats where weights are tied, if it is a copy."""
    if name == "lm_head.weight":
        return to_checkpoint("embed.weight")
    start = "model.encoder.language_model."
    twin = name.replace(start, "model.decoder.", 1)
    return twin if name.startswith(start) and to_ours(twin) and not to_ours(name) else None


def layouts(name: str, shape: Sequence[int]) -> list[dict[str, Index]]:
    """Every way in which files may hold one of our tensors: names, and the part that each is.

    The first is that of `to_checkpoint`.
    """
    known, layer = pattern(name)
    module, _, word = (known, "", "weight") if known in _MODULES else known.rpartition(".")
    ways: list[dict[str, Index]] = [{to_checkpoint(name): ()}]
    for ours, parts in SPLIT:
        if ours == module:
            experts = range(shape[0]) if ".E." in parts[0] else (slice(None),)
            rows = shape[1] // len(parts)
            named = [f"{part}.{word}".replace(".N.", f".{layer}.") for part in parts]
            ways.append(
                {
                    part.replace(".E.", f".{expert}."): (expert, slice(i * rows, (i + 1) * rows))
                    for expert in experts
                    for i, part in enumerate(named)
                }
            )
    return ways


def is_vision(ours: str) -> bool:
    """Whether one of our names belongs to the vision part, which is left aside for now."""
    return ours.startswith("vision.")
