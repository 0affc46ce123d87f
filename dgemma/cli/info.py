"""`dgemma info`: what a model is and what it needs, computed from its config.

Knows how sizes are printed. Knows nothing about weights; none are read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.errors import InvalidRequest

if TYPE_CHECKING:
    from dgemma.model.config import ModelConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", help="bundled name, directory (config.json is enough) or hub name")
    parser.add_argument("--no-strict", action="store_true", help="accept unknown config keys")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--prompt", type=int, default=1024, help="prompt tokens of the run")
    parser.add_argument("--batch", type=int, default=1, help="requests side by side in the run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def describe(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All facts, as plain values."""
    from dgemma.model.size import BYTES, measure
    from dgemma.weights.files import load_config

    config = load_config(directory, strict=not arguments.no_strict)
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
        "run": _run_memory(config, arguments),
        "cache_bytes_16bit": {n: size.cache_bytes(n, 2, config.sliding_window) for n in contexts},
    }


def _run_memory(config: ModelConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run takes on a CPU, by what it is for; bytes."""
    import torch

    import dgemma.llm  # noqa: F401  (what a run imports)
    from dgemma.bench.clock import status_bytes
    from dgemma.device import choose
    from dgemma.model.size import measure, peak

    dtype = choose("cpu", arguments.dtype, measure(config).parameters, "bfloat16").dtype
    if not 0 < arguments.prompt <= config.max_position_embeddings - config.canvas_length:
        raise InvalidRequest(
            f"--prompt must be 1 to {config.max_position_embeddings - config.canvas_length}, "
            f"got {arguments.prompt}"
        )
    if arguments.batch < 1:
        raise InvalidRequest(f"--batch must be at least 1, got {arguments.batch}")
    parts = peak(config, dtype, arguments.prompt, arguments.batch)
    # What this very process has taken by now is the interpreter and torch.
    torch.ones(64, 64, dtype=dtype) @ torch.ones(64, 64, dtype=dtype)
    runtime = status_bytes("VmHWM") or 0
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "prompt": arguments.prompt,
        "batch": arguments.batch,
        "weights": parts.weights,
        "cache": parts.cache,
        "work": parts.work,
        "runtime": runtime,
        "peak_bytes": parts.total + runtime,
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from dgemma.weights.files import find_model

    directory, _ = find_model(arguments.model)
    facts = describe(directory, arguments)
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
    run = facts["run"]
    rows.append(
        (
            "a run",
            f"{_bytes(run['peak_bytes'])} at most on a CPU in {run['dtype']}, {run['batch']} x "
            f"{run['prompt']} prompt tokens: weights {_bytes(run['weights'])}, cache "
            f"{_bytes(run['cache'])}, work {_bytes(run['work'])}, Python and torch "
            f"{_bytes(run['runtime'])}",
        )
    )
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
