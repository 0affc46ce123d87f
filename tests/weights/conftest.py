"""Small models for the tests of `dgemma/weights`: ours, and the same one made by `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import write_config
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.save import save_weights
from tests.support.oracle import randomise

TINY_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
    "pooling_kernel_size": 2,
    "standardize": True,
    "use_clipped_linears": True,
}


@pytest.fixture
def config() -> ModelConfig:
    """Every kind of layer and tensor, a few thousand numbers."""
    return ModelConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=4,
        top_k_experts=2,
        num_attention_heads=4,
        layer_types=("sliding_attention", "full_attention", "sliding_attention", "full_attention"),
        sliding=AttentionShape(head_dim=8, num_key_value_heads=2, rope_theta=1e4),
        full=AttentionShape(
            head_dim=16, num_key_value_heads=1, rope_theta=1e6, partial_rotary_factor=0.25
        ),
        sliding_window=16,
        max_position_embeddings=512,
        canvas_length=8,
        vision=TINY_VISION,
    )


@pytest.fixture
def random_model() -> Callable[..., DiffusionGemma]:
    """Makes our network with every number random: (config, dtype)."""

    def make(config: ModelConfig, dtype: torch.dtype = torch.float32) -> DiffusionGemma:
        model = DiffusionGemma(config).to(dtype)
        randomise(model)
        return model

    return make


@pytest.fixture
def meta_model() -> Callable[[ModelConfig], DiffusionGemma]:
    """Makes our network without weights, as `load_weights` wants it."""

    def make(config: ModelConfig) -> DiffusionGemma:
        with torch.device("meta"):
            return DiffusionGemma(config)

    return make


@pytest.fixture
def reference_model() -> Callable[..., Any]:
    """Makes the same network in `transformers`, with every number random: (config, dtype)."""

    from transformers import DiffusionGemmaConfig
    from transformers.models.diffusion_gemma import modeling_diffusion_gemma as oracle

    def make(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Any:
        made = oracle.DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**write_config(config)))
        made = made.to(dtype)
        randomise(made)
        return made

    return make


@pytest.fixture
def saved(tmp_path: Path, config: ModelConfig, random_model: Callable[..., DiffusionGemma]) -> Path:
    """A directory with a checkpoint in several shards."""
    model = random_model(config)
    return save_weights(model, tmp_path / "model", config=config, max_shard_bytes=100_000)


@pytest.fixture
def written() -> Callable[[Any], dict[str, tuple[int, ...]]]:
    """Names and shapes that `save_pretrained` writes: all but those tied to another."""

    def of(model: Any) -> dict[str, tuple[int, ...]]:
        tied = set(model.all_tied_weights_keys)
        return {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}

    return of


@pytest.fixture
def released() -> ModelConfig:
    """The sizes of the 26B checkpoint."""
    return ModelConfig(
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


@pytest.fixture
def released_tensors(
    released: ModelConfig, written: Callable[[Any], dict[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the files of the 26B checkpoint, from `transformers`' module tree."""
    from transformers import DiffusionGemmaConfig
    from transformers.models.diffusion_gemma import modeling_diffusion_gemma as oracle

    with torch.device("meta"):
        config = DiffusionGemmaConfig(**write_config(released))
        return written(oracle.DiffusionGemmaForBlockDiffusion(config))
