"""`dgemma bench`: measure speed on this machine, beside its ceilings and beside `transformers`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.cli.files import write_text
from dgemma.cli.options import add_model, path_of, positive, say
from dgemma.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from dgemma.bench.drive import Where
    from dgemma.bench.report import Report

MEASURES = {
    "step": "a denoising step in parts, beside the machine's ceilings",
    "compare": "ours and transformers on the same checkpoint, in turns",
    "generate": "tokens per second, time to the first frame and commit",
    "gpu": "the GPU kernels, compiled for GPUs that are not there; takes no model",
}
IN_A_CHECKOUT = ("scale", "offline", "serving", "vocabulary", "llama")
"""Programs that are not in the wheel."""


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": (
        "tokens of a random prompt; without it generate takes an example",
        {"step": 64, "compare": 64, "generate": None},
    ),
    "steps": ("denoising steps of a run", {"step": 8, "compare": 6}),
    "pairs": ("runs of each program in each mode", {"compare": 5}),
    "cache": ("of transformers; it compiles its step with a static one", {"compare": "dynamic"}),
    "modes": ("tuned: malloc keeps its memory", {"compare": "both"}),
    "max_tokens": ("maximum tokens of an answer", {"generate": 256}),
    "runs": ("answers", {"generate": 3}),
    "targets": ("compute capabilities, separated by commas", {"gpu": "80,86,89,90,100,120"}),
}
"""Option -> its help, and its default in each measurement that takes it."""
CHOICES = {"cache": ("dynamic", "static"), "modes": ("both", "plain", "tuned")}
TEXTS = {"targets": "LIST"}


def output(text: str) -> Path:
    """A file to write, refused before hours of measuring if it cannot be written."""
    if not (path := Path(text)).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path.parent}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a directory; name a file in it")
    if not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} may not be written")
    return path


def add_where(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark: the model, where it runs, where the numbers go."""
    add_model(parser)
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (torch's choice)"
    )
    parser.add_argument("--json", type=output, metavar="FILE", help="write every number as JSON")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("measure", metavar="MEASURE", nargs="?", help=" or ".join(MEASURES))
    add_where(parser)
    parser.add_argument(
        "--make",
        nargs=2,
        metavar=("SHAPE", "DIRECTORY"),
        help="write a random checkpoint instead: real, real-layers:N, mini or tiny",
    )
    for name, (what, defaults) in OPTIONS.items():
        takes = ", ".join(f"{kind} {value or ''}".strip() for kind, value in defaults.items())
        kind = str if name in CHOICES or name in TEXTS else positive
        choices, about = CHOICES.get(name), f"{what} ({takes})"
        metavar = None if choices else TEXTS.get(name, "N")
        parser.add_argument(flag(name), type=kind, choices=choices, metavar=metavar, help=about)
    lines = "\n".join(f"  {name:<10} {what}" for name, what in MEASURES.items())
    parser.epilog = (
        f"measures:\n{lines}\n\n"
        "example:\n  dgemma bench step nano --prompt 1024 --json step.json\n\n"
        f"From a checkout there are also {', '.join(IN_A_CHECKOUT)}: python -m bench.NAME --help"
    )


def flag(name: str) -> str:
    """max_tokens -> --max-tokens."""
    return f"--{name.replace('_', '-')}"


def settled(arguments: argparse.Namespace) -> argparse.Namespace:
    """The options of the measurement with their defaults.

    Raises:
        InvalidRequest: no such measurement, or an option of another one.
    """
    measure = arguments.measure
    if measure in IN_A_CHECKOUT:
        raise InvalidRequest(f"{measure} is not in the wheel; in a checkout run: "
                             f"python -m bench.{measure} --help")  # fmt: skip
    if measure not in MEASURES:
        said = "name a measurement" if measure is None else f"unknown measurement {measure!r}"
        hint = nearest(measure or "", MEASURES)
        raise InvalidRequest(f"{said}{hint}; known: {', '.join(MEASURES)}; or use --make")
    found = {}
    for name, (_, defaults) in OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None and measure not in defaults:
            known = ", ".join(defaults)
            raise InvalidRequest(f"{flag(name)} belongs to {known}, not {measure}")
        if measure in defaults:
            found[name] = defaults[measure] if value is None else value
    return argparse.Namespace(**found)


def where_of(arguments: argparse.Namespace) -> Where:
    """The options of `add_where`."""
    from dgemma.bench.drive import Where

    return Where(
        arguments.model, arguments.device, arguments.dtype, arguments.threads,
        not arguments.no_strict, arguments.command_line, arguments.attention,
    )  # fmt: skip


def deliver(report: Report, path: Path | None) -> None:
    """Print a report, and write its numbers into a file."""
    from dgemma.bench.report import plain

    print(report.as_markdown())
    if path is not None:
        write_text(path, json.dumps(plain(report), indent=1) + "\n")


def _loading(arguments: argparse.Namespace) -> list[str]:
    """The options given that say how a model is loaded."""
    defaults = {"device": "auto", "attention": "auto", "dtype": "auto", "no_strict": False}
    return [name for name, usual in defaults.items() if getattr(arguments, name) != usual]


def made(arguments: argparse.Namespace) -> int:
    """Write a random checkpoint."""
    from dgemma.bench.make import make
    from dgemma.bench.shapes import shape

    unused = [name for name in ("json", "threads", *OPTIONS) if getattr(arguments, name)]
    unused += _loading(arguments)
    if arguments.measure is not None or unused:
        wrong = arguments.measure or flag(unused[0])
        raise InvalidRequest(f"--make only writes a checkpoint; leave out {wrong}")
    name, directory = arguments.make
    print(make(shape(name), directory))
    return 0


def compiled(arguments: argparse.Namespace, targets: str) -> int:
    """Compile the GPU kernels; needs neither a model nor a GPU."""
    unused = [arguments.named] if arguments.named else []
    unused += [flag(name) for name in _loading(arguments)]
    unused += ["--threads"] if arguments.threads is not None else []
    if unused:
        raise InvalidRequest(f"bench gpu takes no model and runs none; leave out {unused[0]}")
    from dgemma.bench import gpu

    deliver(gpu.report(gpu.targets_of(targets), arguments.command_line, say), arguments.json)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 whatever was measured."""
    if arguments.make is not None:
        return made(arguments)
    options = settled(arguments)
    if arguments.measure == "gpu":
        return compiled(arguments, options.targets)
    path_of(arguments)
    from dgemma.bench import compare, generate, step
    from dgemma.bench.machine import busy

    measures = {"step": step.report, "compare": compare.report, "generate": generate.report}
    where = where_of(arguments)
    if warning := busy():
        say(warning)
    deliver(measures[arguments.measure](where, options, say), arguments.json)
    return 0
