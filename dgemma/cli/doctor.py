"""`dgemma doctor`: device, dtype, threads, kernels and versions, each with its reason."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from dgemma import __version__
from dgemma.cli.options import add_model, path_of
from dgemma.cli.progress import amount

PACKAGES = {
    "torch": "", "safetensors": "", "tokenizers": "", "jinja2": "", "numpy": "",
    "huggingface-hub": "hub", "transformers": "check", "llguidance": "constrain",
    "fastapi": "server", "uvicorn": "server", "triton": "cuda",
}  # fmt: skip
"""Package -> the extra that installs it; none: every install has it."""
PURPOSE = {
    "hub": "dgemma pull", "check": "dgemma check", "server": "dgemma serve",
    "constrain": "JSON schemas, grammars and required tool calls", "cuda": "the GPU kernels",
}  # fmt: skip
"""Extra -> what needs it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example:\n  dgemma doctor nano --dtype bfloat16"


def facts(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(what, value, reason) of every choice."""
    path = path_of(arguments)
    import torch

    from dgemma.device import free_bytes, total_bytes
    from dgemma.loading import load_model

    found = load_model(
        path, device=arguments.device, dtype=arguments.dtype,
        attention=arguments.attention, strict=not arguments.no_strict, weights=False,
    )  # fmt: skip
    choice = found.choice
    free = free_bytes(choice.device)
    rows = [
        ("python", platform.python_version(), sys.executable),
        ("dgemma", __version__, "installed"),
        ("model", arguments.model, str(path)),
        ("device", str(choice.device), choice.device_reason),
        ("dtype", str(choice.dtype).removeprefix("torch."), choice.dtype_reason),
        ("threads", str(torch.get_num_threads()), "torch's own choice; OMP_NUM_THREADS changes it"),
        (
            "memory",
            f"{amount(free)} free",
            f"of {amount(total_bytes(choice.device))} on this device",
        ),
        *found.model.kernels,
    ]
    missing = dict[str, list[str]]()
    for name, extra in PACKAGES.items():
        try:
            rows.append((name, version(name), "installed"))
        except PackageNotFoundError:
            rows.append((name, "absent", f"optional: pip install 'dgemma[{extra}]'"))
            missing.setdefault(extra, []).append(name)
    if choice.device.type != "cuda":
        missing.pop("cuda", None)
    size = sum(weight.numel() for weight in found.model.parameters()) * choice.dtype.itemsize
    return [*rows, summary(missing, size, free)]


def summary(missing: Mapping[str, list[str]], size: int, free: int) -> tuple[str, str, str]:
    """The last row: all good, or what is amiss, each with its remedy.

    Args:
        missing: extra -> its absent packages.
        size, free: bytes of the weights, and of free memory.
    """
    amiss = [
        f"{PURPOSE[extra]} needs {', '.join(names)}: pip install 'dgemma[{extra}]'"
        for extra, names in missing.items()
    ]
    if size > free:
        amiss.append(
            f"the weights need {amount(size)} of memory and {amount(free)} are free: end other "
            "programs, or take a smaller model or dtype"
        )
    return (
        "summary",
        "incomplete" if amiss else "all good",
        "; ".join(amiss) or "nothing is missing",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print every choice."""
    rows = facts(arguments)
    if arguments.json:
        print(json.dumps([{"what": a, "value": b, "reason": c} for a, b, c in rows]))
    else:
        for what, value, reason in rows:
            print(f"{what:<18}{value:<18}{reason}")
    return 0
