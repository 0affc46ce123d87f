"""`dgemma list`: the models in the local hub cache. No network, no torch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from dgemma.cli.options import say
from dgemma.cli.progress import amount
from dgemma.weights.cached import cached_models
from dgemma.weights.find import hub_cache


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example:\n  dgemma list"


def run(arguments: argparse.Namespace) -> int:
    """Print name, files, size and format of each."""
    found = cached_models()
    if arguments.json:
        print(json.dumps([asdict(model) for model in found]))
        return 0
    if not found:
        say(f"{hub_cache()} holds no model of this kind; `dgemma pull OWNER/NAME` downloads one")
    width = max((len(model.name) for model in found), default=0)
    for one in found:
        files = f"{one.files} file{'s' * (one.files != 1)}"
        print(f"{one.name:<{width}}  {files:>9}  {amount(one.size):>9}  {one.format}")
    return 0
