"""`dgemma doctor`: device, dtype, threads, kernels and versions, each with its reason."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from dgemma import __version__
from dgemma.cli.options import add_model, directory_of

PACKAGES = {
    "torch": "", "safetensors": "", "tokenizers": "", "jinja2": "", "numpy": "",
    "huggingface-hub": "hub", "transformers": "check", "llguidance": "constrain",
    "fastapi": "server", "uvicorn": "server", "triton": "cuda",
}  # fmt: skip
"""Package -> the extra that installs it; none: every install has it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example:\n  dgemma doctor nano --dtype bfloat16"


def facts(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(what, value, reason) of every choice."""
    directory = directory_of(arguments)
    import torch

    from dgemma.device import choose
    from dgemma.kernels.attention import choose_attention
    from dgemma.kernels.experts import choose_experts
    from dgemma.kernels.head import choose_head
    from dgemma.model.size import measure
    from dgemma.weights.files import open_checkpoint

    checkpoint = open_checkpoint(directory, strict=not arguments.no_strict)
    config = checkpoint.config
    parameters = measure(config).parameters
    choice = choose(arguments.device, arguments.dtype, parameters, checkpoint.dtype)
    experts = choose_experts(
        config.num_experts, config.moe_intermediate_size, choice.dtype, choice.device
    )
    rows = [
        ("python", platform.python_version(), sys.executable),
        ("dgemma", __version__, "installed"),
        ("model", arguments.model, str(directory)),
        ("device", str(choice.device), choice.device_reason),
        ("dtype", str(choice.dtype).removeprefix("torch."), choice.dtype_reason),
        ("threads", str(torch.get_num_threads()), "torch's own choice; OMP_NUM_THREADS changes it"),
        ("experts", *experts),
        ("head", *choose_head(config.vocab_size, choice.device)),
        ("attention", *choose_attention(choice.dtype, choice.device)),
    ]
    for name, extra in PACKAGES.items():
        try:
            rows.append((name, version(name), "installed"))
        except PackageNotFoundError:
            rows.append((name, "absent", f"optional: pip install 'dgemma[{extra}]'"))
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Print every choice."""
    rows = facts(arguments)
    if arguments.json:
        print(json.dumps([{"what": a, "value": b, "reason": c} for a, b, c in rows]))
    else:
        for what, value, reason in rows:
            print(f"{what:<16}{value:<18}{reason}")
    return 0
