"""`dgemma quantize`: pack the weights of a model into fewer bits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.cli.calibrate import read_prompts
from dgemma.cli.files import read_text
from dgemma.cli.options import add_model, open_model, path_of, positive, say
from dgemma.cli.progress import Progress, amount
from dgemma.errors import InvalidRequest

if TYPE_CHECKING:
    from dgemma.evaluate.paired import Setting
    from dgemma.quant.activations import Activations
    from dgemma.weights.writers.tally import Tally

FORMATS = {
    "int4": "experts in groups of 32, attention and MLP in 8 bits a row, compressed-tensors",
    "int4-all": "all in groups of 32, compressed-tensors",
    "int8": "a scale a row, compressed-tensors",
    "fp8": "a scale a row, compressed-tensors",
    "mxfp4": "groups of 32, compressed-tensors",
    "gguf-q8_0": "one GGUF file",
    "gguf-q4_0": "one GGUF file",
}
TASKS = ("sudoku", "json")
"""Of `--evaluate`: those of `dgemma evaluate`."""
MORE_PASSES = 1.10
"""From here on a model that takes more passes than before is warned of."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser, "out")
    add = parser.add_argument
    add("out", nargs="?", metavar="OUT", help="new directory, or new file that ends in .gguf")
    add("--format", choices=FORMATS, help="; ".join(f"{f}: {what}" for f, what in FORMATS.items()))
    keep = "weights that stay in 16 bits: names, paths above them or globs ('layers.0.*')"
    add("--keep", nargs="+", action="extend", metavar="PATTERN", default=[], help=keep)
    symmetric = "int4 without zero points, which vLLM wants for experts; a larger error"
    add("--symmetric", action="store_true", help=symmetric)
    data = "int4: text that tells which columns matter, plain, or .jsonl as for calibrate "
    add("--data", type=Path, metavar="FILE", help=data + "(all count the same)")
    evaluate = "compare answers and passes before and after, on N examples of sudoku and json each"
    add("--evaluate", type=positive, metavar="N", help=evaluate)
    add("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "Attention, dense MLP and experts are packed. Router, norms, scalars, self-conditioning,\n"
        "embedding and vision stay as they are. --device, --attention and --dtype are for the\n"
        "runs of --data and of --evaluate.\n\n"
        "example:\n  dgemma quantize nano nano-int4 --format int4 --evaluate 100"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files, print what it did to the weights."""
    form = arguments.format
    if arguments.out is None or form is None:
        raise InvalidRequest("name OUT and --format; see `dgemma quantize --help`")
    for option in ("symmetric", "data"):
        if not form.startswith("int4") and getattr(arguments, option):
            raise InvalidRequest(f"--{option} is for --format int4 or int4-all; leave it out")
    source = path_of(arguments)
    rows = None if arguments.data is None else read_data(arguments.data)
    with Progress("loading torch"):
        from dgemma.loading import FITTED, copied_files
        from dgemma.weights.files import open_checkpoint
        from dgemma.weights.writers import write
        from dgemma.weights.writers.tensors import Tensors

    target = write.check_target(source, Path(arguments.out), form.startswith("gguf-"))
    checkpoint = open_checkpoint(source, strict=not arguments.no_strict)
    write.keeper(Tensors(checkpoint), arguments.keep)  # refused before an hour of work
    seen = None if rows is None else _watched(arguments, rows)
    copied = copied_files(checkpoint.path)
    with Progress(f"writing {target.name}", show=amount) as bar:
        tally = write.write_packed(
            checkpoint, target, form, files=copied,
            keep=arguments.keep, symmetric=arguments.symmetric, progress=bar,
            importance=lambda name: None if seen is None else seen.importance(name),
        )  # fmt: skip
    if (checkpoint.directory / FITTED).exists():
        tally.remarks.append(f"{FITTED} is left out: it was fitted for other weights")
    return _report(arguments, target, tally)


def read_data(path: Path) -> Any:
    """A plain text, or the rows of a file that ends in .jsonl.

    Raises:
        InvalidRequest: it cannot be read, or is empty.
    """
    if path.suffix == ".jsonl":
        return read_prompts(path)
    text = read_text(path)
    if not text.strip():
        raise InvalidRequest(f"{path} is empty; give a text like those the model is to write")
    return text


def _watched(arguments: argparse.Namespace, data: Any) -> Activations:
    """What the source's matrices are multiplied with."""
    with open_model(arguments) as llm, Progress("calibrating") as bar:
        from dgemma.evaluate.activations import user_texts, watch

        return watch(llm, user_texts(llm, data), bar.part)


def _report(arguments: argparse.Namespace, target: Path, tally: Tally) -> int:
    made = {} if arguments.evaluate is None else _evaluated(arguments, target)
    warnings = [text for task, pair in made.items() if (text := more_passes(task, pair))]
    if arguments.json:
        results = {task: [_values(setting) for setting in pair] for task, pair in made.items()}
        found = {"out": str(target), **tally.as_values()}
        print(json.dumps(found | ({"evaluation": results, "warnings": warnings} if made else {})))
        return 0
    print(tally.as_markdown())
    if made:
        from dgemma.evaluate.paired import as_markdown

        for task, pair in made.items():
            print(f"\n{as_markdown(task, pair)}")
    for text in warnings:
        say(f"warning: {text}")
    print(f"\n{target}")
    return 0


def _evaluated(arguments: argparse.Namespace, target: Path) -> dict[str, list[Setting]]:
    """The source and what was made of it, on the same examples and seeds."""
    from dgemma.evaluate.paired import Setting, compare
    from dgemma.params import SamplingParams

    names = ("", arguments.format)
    made = {task: [Setting(name, SamplingParams()) for name in names] for task in TASKS}
    for place, model in enumerate((arguments.model, str(target))):
        chosen = argparse.Namespace(**{**vars(arguments), "model": model})
        with open_model(chosen) as llm, Progress("evaluating") as bar:
            most = 2 * llm.config.canvas_length
            for task, pair in made.items():
                compare(
                    llm, task, [pair[place]], arguments.evaluate, most, report=lambda line: None,
                    progress=bar.part,
                )  # fmt: skip
    return made


def more_passes(task: str, pair: list[Setting]) -> str | None:
    """What to say where a packed model takes more passes; None: it does not."""
    before, after = (sum(setting.steps) / len(setting.steps) for setting in pair)
    if after <= MORE_PASSES * before:
        return None
    return (
        f"{task} takes {after / before:.2f} x the passes of the source (n = {len(pair[0].steps)}); "
        "keep more in 16 bits, or take a format of 8 bits"
    )


def _values(setting: Setting) -> dict[str, Any]:
    count = len(setting.exact)
    passes = sum(setting.steps) / count
    return {"name": setting.name, "n": count, "exact": sum(setting.exact) / count, "passes": passes}
