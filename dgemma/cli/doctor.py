"""`dgemma doctor`: device, dtype, threads, kernels and versions, each with its reason.

Knows where every choice is made. Makes none itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from dgemma.cli.options import add_model

PACKAGES = (
    "torch",
    "safetensors",
    "tokenizers",
    "jinja2",
    "numpy",
    "huggingface-hub",
    "transformers",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def facts(model: str, device: str, dtype: str, strict: bool) -> list[tuple[str, str, str]]:
    """(what, value, reason) of every choice."""
    import torch

    from dgemma.device import choose
    from dgemma.kernels.attention import choose_attention
    from dgemma.kernels.experts import choose_experts
    from dgemma.kernels.head import choose_head
    from dgemma.model.size import measure
    from dgemma.weights.files import find_model, open_checkpoint

    directory, _ = find_model(model)
    checkpoint = open_checkpoint(directory, strict=strict)
    config = checkpoint.config
    choice = choose(device, dtype, measure(config).parameters, checkpoint.dtype)
    experts = choose_experts(
        config.num_experts, config.moe_intermediate_size, choice.dtype, choice.device
    )
    rows = [
        ("python", platform.python_version(), sys.executable),
        ("model", model, str(directory)),
        ("device", str(choice.device), choice.device_reason),
        ("dtype", str(choice.dtype).removeprefix("torch."), choice.dtype_reason),
        ("threads", str(torch.get_num_threads()), "torch's own choice; OMP_NUM_THREADS changes it"),
        ("experts", *experts),
        ("head", *choose_head(config.vocab_size, choice.device)),
        ("attention", *choose_attention(choice.dtype, choice.device)),
    ]
    for name in PACKAGES:
        try:
            rows.append((name, version(name), "installed"))
        except PackageNotFoundError:
            rows.append((name, "absent", "optional: `pip install 'dgemma[hub,check]'`"))
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Print every choice."""
    rows = facts(arguments.model, arguments.device, arguments.dtype, not arguments.no_strict)
    if arguments.json:
        print(json.dumps([{"what": a, "value": b, "reason": c} for a, b, c in rows]))
    else:
        for what, value, reason in rows:
            print(f"{what:<16}{value:<18}{reason}")
    return 0
