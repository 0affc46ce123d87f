"""`dgemma pull`: download a model into the local hub cache.

The only command that uses the network.
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", help="hub name, for example google/diffusiongemma-26B-A4B-it")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--endpoint", help="hub address, when it is not the usual one")


def run(arguments: argparse.Namespace) -> int:
    """Download, then print where the files are."""
    from dgemma.weights.hub import pull

    print(pull(arguments.name, arguments.revision, arguments.endpoint))
    return 0
