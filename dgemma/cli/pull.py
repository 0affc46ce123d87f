"""`dgemma pull`: download a model into the local hub cache.

The only command that uses the network.
"""

from __future__ import annotations

import argparse

from dgemma.cli.options import add_name, say
from dgemma.weights.find import bundled_models


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_name(parser)
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (main)")
    parser.add_argument("--endpoint", metavar="URL", help="address of the hub (huggingface.co)")
    about = "take only files whose names match, such as '*Q4_K_M*.gguf'; repeatable"
    parser.add_argument("--include", action="append", metavar="GLOB", help=about)
    parser.epilog = "example:\n  dgemma pull google/diffusiongemma-26B-A4B-it"


def run(arguments: argparse.Namespace) -> int:
    """Download, then print where the files are."""
    if arguments.model in bundled_models():
        say(f"{arguments.model} comes with dgemma; nothing to download")
        print(bundled_models()[arguments.model])
        return 0
    from dgemma.weights.hub import pull

    include = arguments.include or ()
    print(pull(arguments.model, arguments.revision, arguments.endpoint, include))
    return 0
