"""`dgemma info`: sizes and memory of a model, computed from its config; no weights are read."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.cli.options import MEMORY, add_model, memory_size, path_of, positive
from dgemma.cli.progress import amount
from dgemma.errors import InvalidRequest

if TYPE_CHECKING:
    from dgemma.model.config import ModelConfig
    from dgemma.weights.plan import MemoryPlan


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, device=False)
    add = parser.add_argument
    add("--prompt", type=positive, metavar="N", default=1024, help="prompt tokens of a run (1024)")
    add("--batch", type=positive, metavar="N", default=1, help="requests at once in a run (1)")
    add("--memory", type=memory_size, metavar="SIZE", help=f"show the plan for {MEMORY}")
    add("--context", type=positive, metavar="N", help="tokens that the plan has room for (8192)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="device of the plan, which need "
        "not be there (auto)")  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    parser.epilog = "examples:\n  dgemma info nano --prompt 4096\n  dgemma info nano --memory 60MB"


def describe(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All facts, as plain values."""
    from dgemma.model.size import BYTES, measure
    from dgemma.weights.files import load_config

    config = load_config(path, strict=not arguments.no_strict)
    size = measure(config)
    run = _run_memory(config, arguments)
    plan = _plan(path, arguments)
    contexts = [n for n in (1024, 8192, 65536, 262144) if n <= config.max_position_embeddings]
    return {
        "directory": str(path),
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
        "run": run,
        "machine": _machine(run),
        "cache_bytes_16bit": {n: size.cache_bytes(n, 2, config.sliding_window) for n in contexts},
        "plan": None if plan is None else plan.facts() | {"lines": plan.lines()},
    }


def _plan(directory: Path, arguments: argparse.Namespace) -> MemoryPlan | None:
    """Where the memory would go; None if nobody asks. No weights are read."""
    if arguments.memory is None and arguments.context is None:
        if arguments.device is not None:
            raise InvalidRequest("--device says what a plan is for; give --memory or --context too")
        return None
    from dgemma.device import choose_device
    from dgemma.loading import plan_model

    device = arguments.device or "auto"
    return plan_model(
        directory, device=choose_device()[0].type if device == "auto" else device,
        dtype=arguments.dtype, strict=not arguments.no_strict, memory=arguments.memory,
        context=arguments.context,
    )  # fmt: skip


def _run_memory(config: ModelConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """The memory of a run on a CPU, by its use; bytes."""
    import torch

    import dgemma.llm  # noqa: F401  (what a run imports)
    from dgemma.bench.clock import status_bytes
    from dgemma.device import choose, free_bytes
    from dgemma.model.size import measure, peak

    numbers = measure(config).parameters
    dtype = choose("cpu", arguments.dtype, numbers, "bfloat16").dtype
    most = config.max_position_embeddings - config.canvas_length
    if arguments.prompt > most:
        raise InvalidRequest(f"--prompt must be at most {most}, got {arguments.prompt}")
    cache = arguments.cache_dtype
    room = free_bytes(torch.device("cpu")) / numbers
    parts = peak(config, dtype, arguments.prompt, arguments.batch, cache_dtype=cache, room=room)
    # The memory of this very process by now is that of the interpreter and torch.
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


def _machine(run: dict[str, Any]) -> dict[str, Any]:
    """Whether a run fits the free memory of the device that loading would choose."""
    from dgemma.device import choose_device, free_bytes

    device, _ = choose_device()
    free = free_bytes(device)
    needed = run["peak_bytes"] - (run["runtime"] if device.type == "cuda" else 0)
    return {"device": str(device), "free_bytes": free, "fits": needed <= free}


TOO_LARGE = "the run does not fit (a shorter --prompt, --dtype bfloat16 or a smaller model may)"
ROWS = {
    "layers": "{layers} ({kinds}, window {window})",
    "hidden": "{hidden_size}, dense {intermediate_size}",
    "experts": "{experts} x {expert_size}, {experts_per_token} a token",
    "attention": "{heads} heads; keys {sliding} sliding, {full} full",
    "vocabulary": "{vocabulary:,}",
    "canvas": "{canvas} tokens, context {context:,}",
    "parameters": "{parameters} (text part, tied embedding once)",
    "active": "{active_parameters} for one token",
    "weights": "{weight_bytes}",
    "cache, 16 bit": "{cache_bytes_per_token_16bit} a token + {cache_bytes_fixed_16bit} fixed; "
    "{cache_bytes_16bit}",
    "a run": "{run[peak_bytes]} at most on a CPU in {run[dtype]}, {run[batch]} x {run[prompt]} "
    "prompt tokens: weights {run[weights]}, cache {run[cache]}, work {run[work]}, Python and torch "
    "{run[runtime]}",
    "this machine": "{verdict}: {machine[free_bytes]} of memory are free on {machine[device]}",
}
"""A line of the output -> its text, from the facts with their units."""


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    facts = describe(path_of(arguments), arguments)
    if arguments.json:
        print(json.dumps(facts))
        return 0
    kinds = ", ".join(f"{n} {kind.split('_')[0]}" for kind, n in facts["layer_types"].items())
    shown = {**facts, "kinds": kinds}
    for name in ("parameters", "active_parameters"):
        shown[name] = _count(facts[name])
    for name in ("cache_bytes_per_token_16bit", "cache_bytes_fixed_16bit"):
        shown[name] = amount(facts[name])
    for name, joint in (("weight_bytes", " "), ("cache_bytes_16bit", ": ")):
        shown[name] = ", ".join(f"{at}{joint}{amount(size)}" for at, size in facts[name].items())
    used = ("weights", "cache", "work", "runtime", "peak_bytes")
    shown["verdict"] = "the run fits" if facts["machine"]["fits"] else TOO_LARGE
    shown["machine"] = facts["machine"] | {"free_bytes": amount(facts["machine"]["free_bytes"])}
    shown["run"] = facts["run"] | {name: amount(facts["run"][name]) for name in used}
    print(facts["directory"])
    for name, text in ROWS.items():
        print(f"  {name:<14}{text.format_map(shown)}")
    for line in facts["plan"]["lines"] if facts["plan"] else ():
        print(f"  plan          {line}")
    if facts["vision"]:
        print("  vision        present, not used (text only for now)")
    return 0


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
