"""Answers of random weights, which know nothing: all form is the doing of the constraint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma.engine.engine import Engine
from dgemma.frontend import Frontend
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Output, Request

ROOM = 1024


def random_engine(vocab_size: int, ends: tuple[int, ...], canvas: int = 64) -> Engine:
    """An engine on random weights."""
    model = DiffusionGemma(
        ModelConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=32,
            moe_intermediate_size=16, num_experts=4, top_k_experts=2, num_attention_heads=2,
            layer_types=("sliding_attention", "full_attention"),
            sliding=AttentionShape(head_dim=16, num_key_value_heads=1, rope_theta=1e4),
            full=AttentionShape(head_dim=16, num_key_value_heads=1, rope_theta=1e4),
            sliding_window=64, max_position_embeddings=4096, canvas_length=canvas,
        )
    )  # fmt: skip
    model.reset_parameters(7)
    return Engine(model.eval().requires_grad_(False), end_ids=ends)


def answers(
    engine: Engine, tokenizer: Tokenizer, cases: Mapping[str, Mapping[str, Any]], seeds: int,
    room: int = ROOM,
) -> list[tuple[str, Output, str]]:  # fmt: skip
    """(name, output, text) of every case with every seed, run together."""
    engine.frontend = Frontend(
        Path(), tokenizer, None, end_ids=engine.spec.end_ids, canvas=engine.spec.length,
        context=engine.spec.context_length,
    )  # fmt: skip
    streams = []
    for name, language in cases.items():
        for seed in range(seeds):
            params = SamplingParams(seed=seed, max_steps=3, max_tokens=room, **language)
            request = Request(token_ids=(2, 5 + seed, 6), params=params)
            streams.append((name, engine.submit(request)))
    out = []
    for name, stream in streams:
        output = [event.output for event in stream][-1]
        assert output is not None and output.error is None, (name, output)
        out.append((name, output, tokenizer.decode(output.token_ids)))
    return out


def check_ends(found: list[tuple[str, Output, str]]) -> float:
    """Every output says of itself whether it is whole; the share of those that are."""
    for name, output, _ in found:
        assert output.constraint is not None, name
        assert output.finish_reason in ("stop", "length"), (name, output.error)
        assert output.constraint.complete == (output.finish_reason == "stop"), (name, output)
    return sum(output.finish_reason == "stop" for _, output, _ in found) / len(found)
