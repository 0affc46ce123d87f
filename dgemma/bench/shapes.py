"""The sizes that benchmarks run at, by name.

Knows the released sizes and a small one beside them. Knows nothing about weights or timing.
Source of the released sizes: `docs/released-weights.md`.
"""

from __future__ import annotations

from dataclasses import replace

from dgemma.errors import InvalidRequest, nearest
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.hf_config import default_layer_types


def _full(head_dim: int, heads: int) -> AttentionShape:
    return AttentionShape(
        head_dim=head_dim, num_key_value_heads=heads, rope_theta=1e6, partial_rotary_factor=0.25
    )


REAL = ModelConfig(
    vocab_size=262_144,
    hidden_size=2816,
    intermediate_size=2112,
    moe_intermediate_size=704,
    num_experts=128,
    top_k_experts=8,
    num_attention_heads=16,
    layer_types=tuple(default_layer_types(30)),
    sliding=AttentionShape(head_dim=256, num_key_value_heads=8, rope_theta=1e4),
    full=_full(512, 2),
    sliding_window=1024,
    max_position_embeddings=262_144,
    image_token_id=258_880,
)
MINI = replace(
    REAL,
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1024,
    moe_intermediate_size=256,
    num_experts=32,
    num_attention_heads=8,
    layer_types=tuple(default_layer_types(8)),
    sliding=AttentionShape(head_dim=64, num_key_value_heads=4, rope_theta=1e4),
    full=_full(128, 2),
    sliding_window=512,
    image_token_id=None,
)
TINY = replace(
    MINI,
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_experts=8,
    top_k_experts=2,
    num_attention_heads=4,
    layer_types=tuple(default_layer_types(3)),
    sliding=AttentionShape(head_dim=8, num_key_value_heads=2, rope_theta=1e4),
    full=_full(16, 1),
    sliding_window=16,
    max_position_embeddings=4096,
    canvas_length=16,
)
SHAPES = {"real": REAL, "mini": MINI, "tiny": TINY}
"""`tiny` says nothing about speed: it is for trying the commands out, and for tests."""


def shape(name: str) -> ModelConfig:
    """The sizes of `real`, `real-layers:N`, `mini` or `tiny`.

    Raises:
        InvalidRequest: another name, or N is not a number of layers.
    """
    base, colon, count = name.partition(":")
    if base == "real-layers":
        if not (count.isdecimal() and 1 <= int(count) <= REAL.num_layers):
            raise InvalidRequest(
                f"shape {name!r}: real-layers:N takes 1 to {REAL.num_layers} layers"
            )
        return replace(REAL, layer_types=tuple(default_layer_types(int(count))))
    if base not in SHAPES or colon:
        known = [*SHAPES, "real-layers:N"]
        raise InvalidRequest(
            f"unknown shape {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    return SHAPES[base]
