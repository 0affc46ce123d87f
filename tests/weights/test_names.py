"""The name table against the module tree and the files of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import DiffusionGemmaConfig
from transformers.models.diffusion_gemma import modeling_diffusion_gemma as oracle

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights import names

RELEASED = ModelConfig(
    vocab_size=262_144,
    hidden_size=2816,
    intermediate_size=2112,
    moe_intermediate_size=704,
    num_experts=128,
    top_k_experts=8,
    num_attention_heads=16,
    layer_types=((*["sliding_attention"] * 5, "full_attention") * 5),
    sliding=AttentionShape(head_dim=256, num_key_value_heads=8, rope_theta=1e4),
    full=AttentionShape(
        head_dim=512, num_key_value_heads=2, rope_theta=1e6, partial_rotary_factor=0.25
    ),
    sliding_window=1024,
    max_position_embeddings=262_144,
    image_token_id=258_880,
    vision={
        "model_type": "gemma4_vision",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 72,
        "standardize": True,
    },
)


def written(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that `save_pretrained` writes: all but those tied to another."""
    tied = set(model.all_tied_weights_keys)
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}


def test_released_size_one_to_one(meta_model: Callable[[ModelConfig], DiffusionGemma]) -> None:
    """On the meta device, at the size of the 26B checkpoint: every tensor of `transformers` has
    one of ours with the same shape and the other way round, vision included.

    The counts are those published for the release: 1,047 tensors, 51.6476 GB in bf16. A tensor
    that one side lacks, a swapped pair of shapes or a layer off by one all show here.
    """
    with torch.device("meta"):
        reference = oracle.DiffusionGemmaForBlockDiffusion(
            DiffusionGemmaConfig(**write_config(RELEASED))
        )
    theirs = written(reference)
    assert len(theirs) == 1047
    assert round(sum(2 * torch.Size(s).numel() for s in theirs.values()) / 1e9, 4) == 51.6476
    ours = {names.to_ours(name): shape for name, shape in theirs.items()}
    assert None not in ours
    assert len(ours) == len(theirs)
    assert {names.to_checkpoint(name or "") for name in ours} == set(theirs)
    text = {name: shape for name, shape in ours.items() if not names.is_vision(name or "")}
    assert text == {k: tuple(v.shape) for k, v in meta_model(RELEASED).state_dict().items()}


def test_written_is_what_is_in_the_file(
    tmp_path: Path, config: ModelConfig, reference_model: Callable[..., Any]
) -> None:
    """`written` above models the ties; here a real save of a tiny model proves it, with the
    clipped linears of the vision part switched on."""
    model = reference_model(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        held = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    assert held == written(model)
    assert all(names.to_ours(name) for name in held)


def test_table_is_two_way() -> None:
    """A name used twice on one side would lose a tensor."""
    table = names.TEXT + names.VISION
    assert len({theirs for theirs, _ in table}) == len({ours for _, ours in table}) == len(table)
    for theirs, ours in table:
        assert names.to_ours(theirs.replace("N", "12")) == ours.replace("N", "12")
        assert names.to_checkpoint(ours.replace("N", "12")) == theirs.replace("N", "12")


def test_unknown_names_are_unknown() -> None:
    """Near misses must not be taken: they are reported as unexpected."""
    for name in (
        "model.decoder.layers.0.layer_scalar.weight",
        "model.decoder.layers.01.layer_scalar",
        "model.decoder.layers.N.layer_scalar",
        "model.encoder.language_model.layers.0.input_layernorm.weight",
        "model.encoder.vision_tower.surprise",
        "lm_head.weight",
        "",
    ):
        assert names.to_ours(name) is None
