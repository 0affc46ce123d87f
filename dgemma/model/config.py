"""The sizes of a DiffusionGemma network, as one frozen value.

Knows the meaning of every number the network needs. Knows nothing about files, tensors or JSON
(`model/hf_config.py` reads and writes the two forms of `config.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dgemma.errors import ConfigError

LayerType = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """One kind of attention layer.

    Attributes:
        head_dim: width of a head.
        num_key_value_heads: key/value heads; the query heads are shared out among them.
        rope_theta: base of the rotary frequencies.
        partial_rotary_factor: share of the frequency pairs that rotate ("proportional": the
            frequencies are those of the full head, the rest are zero).
    """

    head_dim: int
    num_key_value_heads: int
    rope_theta: float
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All sizes of the text part, and the other values of `config.json` that a run needs.

    Source: `transformers` 5.17 `configuration_diffusion_gemma.py`; released values in
    `docs/released-weights.md`.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k_experts: int
    num_attention_heads: int
    layer_types: tuple[LayerType, ...]
    sliding: AttentionShape
    full: AttentionShape
    sliding_window: int
    max_position_embeddings: int
    canvas_length: int = 256
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    pad_token_id: int = 0
    bos_token_id: int | None = 2
    eos_token_ids: tuple[int, ...] = (1,)
    image_token_id: int | None = None
    suppress_ids: tuple[int, ...] = ()
    dtype: str | None = None
    vision: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layer_types or self.layer_types[-1] != "full_attention":
            raise ConfigError("layer_types must end with 'full_attention'")
        if self.top_k_experts > self.num_experts or self.top_k_experts < 1:
            raise ConfigError(
                f"top_k_experts {self.top_k_experts} must be 1 to num_experts {self.num_experts}"
            )
        for kind in ("sliding", "full"):
            shape: AttentionShape = getattr(self, kind)
            if self.num_attention_heads % shape.num_key_value_heads:
                raise ConfigError(
                    f"{kind}: {self.num_attention_heads} query heads cannot share "
                    f"{shape.num_key_value_heads} key/value heads"
                )
            if shape.head_dim % 2:
                raise ConfigError(f"{kind}: head_dim {shape.head_dim} must be even")

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layer_types)

    def attention(self, layer: int) -> AttentionShape:
        """The attention shape of layer `layer`."""
        return self.sliding if self.layer_types[layer] == "sliding_attention" else self.full
