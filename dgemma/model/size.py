"""How big a model is: parameters, active parameters, bytes at each precision, cache per token.

Everything is computed from the config by building the network on the meta device; nothing is
typed in. Knows nothing about files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma

BYTES = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "4-bit": 0.5}
"""Bytes per parameter of each precision, scales not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Counts of the text part; the tied embedding counts once.

    Attributes:
        parameters: all.
        active: those that one token meets: all but the experts it is not routed to.
        embedding: of the table, in `parameters` too.
        experts: of the expert matrices, in `parameters` too.
        cache_fixed: numbers cached for good in sliding layers once the window is full.
        cache_per_token: numbers cached per token in full layers.
    """

    parameters: int
    active: int
    embedding: int
    experts: int
    cache_fixed: int
    cache_per_token: int

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all weights in a precision of `BYTES`."""
        return int(self.parameters * BYTES[precision])

    def cache_bytes(self, tokens: int, item_bytes: int, window: int) -> int:
        """Bytes of keys and values of one request after `tokens` tokens."""
        sliding = self.cache_fixed * min(tokens, window - 1) // max(1, window - 1)
        return (sliding + self.cache_per_token * tokens) * item_bytes


def measure(config: ModelConfig) -> Size:
    """Count a config."""
    with torch.device("meta"):
        model = DiffusionGemma(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    idle = experts - experts * config.top_k_experts // config.num_experts
    fixed = per_token = 0
    for layer, kind in enumerate(config.layer_types):
        shape = config.attention(layer)
        numbers = 2 * shape.num_key_value_heads * shape.head_dim
        if kind == "sliding_attention":
            fixed += numbers * (config.sliding_window - 1)
        else:
            per_token += numbers
    return Size(
        parameters=total,
        active=total - idle,
        embedding=model.embed.weight.numel(),
        experts=experts,
        cache_fixed=fixed,
        cache_per_token=per_token,
    )
