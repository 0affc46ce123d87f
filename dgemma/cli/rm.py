"""`dgemma rm`: delete a model from the local hub cache. No network, no torch."""

from __future__ import annotations

import argparse
import sys

from dgemma.cli.options import add_name, say
from dgemma.cli.progress import amount
from dgemma.errors import InvalidRequest
from dgemma.weights.cached import cached_folder, folder_size, remove_cached


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_name(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.epilog = "example:\n  dgemma rm google/diffusiongemma-26B-A4B-it"


def run(arguments: argparse.Namespace) -> int:
    """Delete it; 1 if the answer is no."""
    folder = cached_folder(arguments.model)
    files, size = folder_size(folder)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("deleting asks first, and nobody is there to answer; add --yes")
        say(f"{folder}: {files} files, {amount(size)}")
        if input("delete it? [y/N] ").strip().lower() not in ("y", "yes"):
            say("nothing was deleted")
            return 1
    remove_cached(arguments.model)
    say(f"deleted {folder}: {amount(size)}")
    return 0
