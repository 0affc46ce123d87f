"""`python -m recipes.nano`: train nano, or go on with a run that was stopped."""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import replace
from pathlib import Path

from dgemma.cli.options import say
from dgemma.cli.progress import Progress
from dgemma.loading import load_model
from dgemma.model.transformer import DiffusionGemma
from dgemma.text.tokenizer import Tokenizer
from dgemma.train.loop import train
from dgemma.weights.find import bundled_models
from recipes.nano.recipe import PLAN, NanoBatches, export, nano_config


def build() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=__doc__)
    add = parser.add_argument
    add("--directory", type=Path, default=Path("runs/nano"), help="of the run (runs/nano)")
    add("--steps", type=int, default=PLAN.steps, help=f"length of the whole run ({PLAN.steps})")
    decay = f"share of the run at its end over which the rate falls ({PLAN.decay})"
    add("--decay", type=float, default=PLAN.decay, help=decay)
    add("--until", type=int, help="stop before this step; resume later")
    add("--begin", type=int, default=0, help="begin with this step, from the bundled weights")
    add("--rate", type=float, default=1.0, help="factor of both learning rates (1)")
    add("--eager", action="store_true", help="do not use torch.compile")
    add("--export", type=Path, help="write the run's weights as a checkpoint, no training")
    return parser


def main() -> None:
    """Train or export."""
    arguments = build().parse_args()
    if arguments.export:
        print(f"exported to {export(arguments.directory, arguments.export)}")
        return
    source = bundled_models()["nano"]
    config = nano_config(Tokenizer.from_directory(source))
    if arguments.begin:
        model = load_model(source, device="cpu", dtype="float32", grad=True).model
    else:
        model = DiffusionGemma(config)
        model.reset_parameters(PLAN.seed)
    plan = replace(PLAN, steps=arguments.steps, decay=arguments.decay, compile=not arguments.eager,
                   begin=arguments.begin, muon_lr=PLAN.muon_lr * arguments.rate,
                   adam_lr=PLAN.adam_lr * arguments.rate)  # fmt: skip
    make = NanoBatches(str(source), config.canvas_length, plan.seed)
    with warnings.catch_warnings(), Progress("first step") as bar:
        # Of no use to whoever trains: norms under autocast read 16 bit with weights of 32.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        # torch.compile looks for CUDA's compiler, which a CPU does without.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        train(
            model, make, plan, arguments.directory, say, arguments.until,
            progress=lambda done, total: bar.part("training, steps", done, total),
        )  # fmt: skip


if __name__ == "__main__":
    main()
