"""`dgemma convert`: write a model's 16-bit weights in another layout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dgemma.cli.options import add_name, path_of
from dgemma.cli.progress import Progress, amount
from dgemma.errors import InvalidRequest

LAYOUTS = {
    "safetensors": "the released layout",
    "gguf": "one file for llama.cpp, text only",
    "mlx": "the names of MLX's programs",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_name(parser, "out")
    add = parser.add_argument
    add("out", nargs="?", metavar="OUT", help="new directory, or new file that ends in .gguf")
    add("--to", choices=LAYOUTS, help="; ".join(f"{n}: {what}" for n, what in LAYOUTS.items()))
    add("--no-strict", action="store_true", help="accept unknown keys in the model's config.json")
    add("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "A packed model is unpacked first. Fewer bits: dgemma quantize.\n\n"
        "example:\n  dgemma convert nano nano.gguf --to gguf"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files, print what became of the weights."""
    if arguments.out is None or arguments.to is None:
        raise InvalidRequest("name OUT and --to; see `dgemma convert --help`")
    source = path_of(arguments)
    with Progress("loading torch"):
        from dgemma.loading import FITTED, copied_files
        from dgemma.weights.files import open_checkpoint
        from dgemma.weights.writers import write

    target = write.check_target(source, Path(arguments.out), arguments.to == "gguf")
    checkpoint = open_checkpoint(source, strict=not arguments.no_strict)
    copied = copied_files(checkpoint.path)
    with Progress(f"writing {target.name}", show=amount) as bar:
        tally = write.write_plain(
            checkpoint, target, arguments.to, files=copied,
            progress=bar,
        )  # fmt: skip
    if (checkpoint.directory / FITTED).exists():
        tally.remarks.append(f"{FITTED} is not copied; copy it where no weight was rounded")
    if arguments.json:
        print(json.dumps({"out": str(target), **tally.as_values()}))
    else:
        print(f"{tally.as_markdown()}\n\n{target}")
    return 0
