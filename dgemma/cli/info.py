"""`dgemma info`: what a model is and what it needs, computed from its config.

Knows how sizes are printed. Knows nothing about weights; none are read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", help="bundled name, directory (config.json is enough) or hub name")
    parser.add_argument("--no-strict", action="store_true", help="accept unknown config keys")
    parser.add_argument("--json", action="store_true", help="print JSON")


def describe(directory: Path, strict: bool) -> dict[str, Any]:
    """All facts, as plain values."""
    from dgemma.model.size import BYTES, measure
    from dgemma.weights.files import load_config

    config = load_config(directory, strict=strict)
    size = measure(config)
    contexts = [n for n in (1024, 8192, 65536, 262144) if n <= config.max_position_embeddings]
    return {
        "directory": str(directory),
        "layers": config.num_layers,
        "layer_types": dict(Counter(config.layer_types)),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "experts": config.num_experts,
        "experts_per_token": config.top_k_experts,
        "expert_size": config.moe_intermediate_size,
        "heads": config.num_attention_heads,
        "sliding": f"{config.sliding.num_key_value_heads} x {config.sliding.head_dim}",
        "full": f"{config.full.num_key_value_heads} x {config.full.head_dim}",
        "window": config.sliding_window,
        "vocabulary": config.vocab_size,
        "canvas": config.canvas_length,
        "context": config.max_position_embeddings,
        "vision": config.vision is not None,
        "parameters": size.parameters,
        "active_parameters": size.active,
        "weight_bytes": {name: size.weight_bytes(name) for name in BYTES},
        "cache_bytes_per_token_16bit": 2 * size.cache_per_token,
        "cache_bytes_fixed_16bit": 2 * size.cache_fixed,
        "cache_bytes_16bit": {n: size.cache_bytes(n, 2, config.sliding_window) for n in contexts},
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from dgemma.weights.files import find_model

    directory, _ = find_model(arguments.model)
    facts = describe(directory, not arguments.no_strict)
    if arguments.json:
        print(json.dumps(facts))
        return 0
    kinds = ", ".join(f"{n} {kind.split('_')[0]}" for kind, n in facts["layer_types"].items())
    rows = [
        ("layers", f"{facts['layers']} ({kinds}, window {facts['window']})"),
        ("hidden", f"{facts['hidden_size']}, dense {facts['intermediate_size']}"),
        (
            "experts",
            f"{facts['experts']} x {facts['expert_size']}, {facts['experts_per_token']} a token",
        ),
        (
            "attention",
            f"{facts['heads']} heads; keys {facts['sliding']} sliding, {facts['full']} full",
        ),
        ("vocabulary", f"{facts['vocabulary']:,}"),
        ("canvas", f"{facts['canvas']} of {facts['context']:,} positions"),
        ("parameters", f"{_count(facts['parameters'])} (text part, tied embedding once)"),
        ("active", f"{_count(facts['active_parameters'])} for one token"),
        ("weights", ", ".join(f"{n} {_bytes(b)}" for n, b in facts["weight_bytes"].items())),
        (
            "cache, 16 bit",
            f"{_bytes(facts['cache_bytes_per_token_16bit'])} a token + "
            f"{_bytes(facts['cache_bytes_fixed_16bit'])} fixed; "
            + ", ".join(f"{n}: {_bytes(b)}" for n, b in facts["cache_bytes_16bit"].items()),
        ),
    ]
    if facts["vision"]:
        rows.append(("vision", "present; left aside (text only for now)"))
    print(facts["directory"])
    for name, value in rows:
        print(f"  {name:<14}{value}")
    return 0


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"
