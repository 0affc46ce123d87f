"""`dgemma check`: parity of a checkpoint with `transformers`, on the user's own machine.

One denoising step and one whole generation by both programs from the same files, in the same dtype,
with our random draws in place of the reference's own.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from dgemma.cli.options import add_model, open_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", default="Hello", help="a prompt (Hello)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the answer (0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example:\n  dgemma check nano"


def run(arguments: argparse.Namespace) -> int:
    """Print both comparisons; 0 when both hold, 1 when one does not."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    llm = open_model(arguments)
    from dgemma.evaluate.parity import compare

    result: dict[str, Any] = compare(llm, arguments.prompt, arguments.seed)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<22}{value}")
        print(
            f"{arguments.model}: dgemma and transformers {'' if result['passed'] else 'dis'}agree"
        )
    return 0 if result["passed"] else 1
