"""`dgemma check`: whether a checkpoint gives the same with `transformers`, on the user's machine.

One denoising step, and in fp32 one whole generation, by both programs from the same files, with our
random draws in place of the reference's own.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from dgemma.cli.options import add_model, open_model, path_of
from dgemma.cli.progress import Progress

if TYPE_CHECKING:
    from dgemma.evaluate.agreement import Agreement


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    add = parser.add_argument
    add("--prompt", metavar="TEXT", default="Hello", help="a prompt (Hello)")
    add("--seed", type=int, metavar="N", default=0, help="of the draws (0)")
    add("--step-only", action="store_true", help="compare one step, no whole generation")
    add("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "Both programs hold the weights, so the memory must be twice their size. In 16 bit only\n"
        "one step is compared.\n\nexample:\n  dgemma check nano"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what was compared and the verdict; 0 if both agree, 1 if they do not."""
    path = path_of(arguments)
    with Progress("loading torch"):
        from dgemma.evaluate.agreement import compare
        from dgemma.evaluate.parity import check_comparable

        check_comparable(path)  # before it is loaded
    llm = open_model(arguments)
    with Progress("checking", at_most=True) as progress:
        found = compare(
            llm, arguments.prompt, arguments.seed, step_only=arguments.step_only,
            report=progress.part,
        )  # fmt: skip
    if arguments.json:
        print(json.dumps(found.as_values()))
    else:
        for what, said in rows(found):
            print(f"{what:<12}{said}")
        print(f"{arguments.model}: dgemma and transformers {found.transformers} {verdict(found)}")
    return 0 if found.passed else 1


def verdict(found: Agreement) -> str:
    """The end of the sentence."""
    if not found.decides:
        return "cannot be compared: rounding alone changes the logits of this checkpoint too much"
    if not found.passed:
        return "disagree"
    if found.reference_differing_tokens:
        return "agree in a step; rounding decides the tokens, even within transformers"
    return "agree"


def rows(found: Agreement) -> list[tuple[str, str]]:
    """What was compared, and how it came out."""
    step = (
        f"logits differ by {found.step_difference:.1e} of the largest, limit "
        f"{found.tolerance:.1e} ({found.dtype}; transformers by {found.reference_spread:.1e} "
        "from itself)"
    )
    if found.tokens is None or found.steps is None:
        return [("one step", step)]
    steps = f"{sum(found.steps)} steps"
    if found.same_tokens and found.same_steps:
        return [("one step", step), ("generation", f"same {found.tokens} tokens in {steps}")]
    said = f"{found.differing_tokens} of {found.tokens} tokens differ, {steps}"
    own = found.reference_differing_tokens
    if own:
        said += f"; {own} differ within transformers, with other kernels"
    else:
        said += "; none differ within transformers, with other kernels"
    return [("one step", step), ("generation", said)]
