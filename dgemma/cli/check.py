"""`dgemma check`: parity of a checkpoint with `transformers`, on the user's own machine.

One denoising step and one whole generation by both programs from the same files, in the same dtype,
with our random draws put in the place of the reference's own. Knows the reference's interface;
`transformers` is an optional dependency that only this command uses.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from dgemma.cli.options import add_model, open_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, positional=True)
    parser.add_argument("--prompt", default="Hello", help="text of the one-step comparison")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print both comparisons; 0 when both hold, 1 when one does not."""
    from dgemma.evaluate.parity import compare

    llm = open_model(arguments)
    result: dict[str, Any] = compare(llm, arguments.prompt, arguments.seed)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<22}{value}")
    return 0 if result["passed"] else 1
