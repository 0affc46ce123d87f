"""`dgemma bench`: measure speed on this machine, beside its ceilings and beside other programs.

Knows which option belongs to which measurement, and where results go. Measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dgemma.cli.options import add_model
from dgemma.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from dgemma.bench.report import Report

MEASURES = {
    "step": "a denoising step in parts, beside the machine's ceilings",
    "compare": "ours and transformers on the same checkpoint, in turns",
    "scale": "cost against prompt, canvas, batch and layers",
    "generate": "tokens per second, time to the first frame and commit",
    "offline": "throughput against requests at once, a newcomer's wait, cached prompts",
    "serving": "a server under load: throughput, waiting and failures, as its clients see them",
}


class BenchOption(NamedTuple):
    """An option: its type, what it is, and its default in each measurement that takes it."""

    kind: Callable[[str], Any]
    about: str
    defaults: dict[str, Any]


OPTIONS = {
    "prompt": BenchOption(
        int, "prompt tokens, random (generate: a held-out example)",
        {"step": 64, "compare": 64, "scale": 64, "generate": None, "offline": 4000},
    ),
    "steps": BenchOption(int, "denoising steps of a run", {"step": 8, "compare": 6, "scale": 4}),
    "pairs": BenchOption(int, "runs of each program in each mode", {"compare": 5}),
    "cache": BenchOption(
        str, "of transformers: dynamic, or static, which it compiles", {"compare": "dynamic"}
    ),
    "modes": BenchOption(
        str, "both, plain or tuned (malloc keeps its memory)", {"compare": "both"}
    ),
    "llama": BenchOption(Path, "a llama.cpp diffusion program to be run too", {"compare": None}),
    "llama_args": BenchOption(
        str, "its arguments: model, prompt, steps, threads", {"compare": None}
    ),
    "axes": BenchOption(
        str, "which of prompt,canvas,batch,layers", {"scale": "prompt,canvas,batch,layers"}
    ),
    "prompts": BenchOption(
        str, "prompt lengths",
        {"scale": "64,256,512,1024,1536,2048,4096,8192,16384,32768"},
    ),
    "canvases": BenchOption(str, "canvas widths", {"scale": "16,32,64,128,256"}),
    "batches": BenchOption(str, "requests at once", {"scale": "1,2,4,8"}),
    "layers": BenchOption(str, "numbers of layers", {"scale": "1,2,3,4,5,6"}),
    "max_tokens": BenchOption(int, "most tokens of an answer", {"generate": 256}),
    "runs": BenchOption(int, "answers, or runs of each kind", {"generate": 3, "offline": 5}),
    "concurrency": BenchOption(
        str, "requests at once (serving: 1,2,4,8 where no rates are given)",
        {"offline": "1,2,4,8,16", "serving": None},
    ),
    "url": BenchOption(
        str, "a server that speaks OpenAI's chat API; without it `dgemma serve` is started",
        {"serving": None},
    ),
    "key_env": BenchOption(
        str, "environment variable with that server's API key", {"serving": None}
    ),
    "rates": BenchOption(str, "requests a second that arrive at random", {"serving": None}),
    "requests": BenchOption(int, "requests under each load", {"serving": 64}),
    "lengths": BenchOption(
        str, "most tokens of an answer, drawn from these", {"serving": "16,64,128"}
    ),
    "prompts_file": BenchOption(
        Path, 'conversations instead, a line each: {"messages": [...]} or {"prompt": "..."}',
        {"serving": None},
    ),
    "drafts": BenchOption(
        str, "off, text or mercury (text for our own server, off with --url)", {"serving": None}
    ),
    "seed": BenchOption(int, "of prompts, lengths and arrivals", {"serving": 1}),
    "timeout_s": BenchOption(int, "seconds after which a request has failed", {"serving": 300}),
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    about = "; ".join(f"{name}: {what}" for name, what in MEASURES.items())
    parser.add_argument("measure", nargs="?", help=about)
    add_model(parser, positional=True)
    parser.add_argument(
        "--make",
        nargs=2,
        metavar=("SHAPE", "DIRECTORY"),
        help="write a random checkpoint instead: real, real-layers:N, mini or tiny",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    for name, option in OPTIONS.items():
        takes = ", ".join(
            kind if value is None else f"{kind} {value}" for kind, value in option.defaults.items()
        )
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=option.kind, help=f"{option.about} ({takes})"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw charts")


def command_line(arguments: argparse.Namespace) -> str:
    """The command that would measure the same again; where results go is left out."""
    words = ["dgemma", "bench", arguments.measure, arguments.model]
    for name in ("device", "dtype"):
        if getattr(arguments, name) != "auto":
            words += [f"--{name}", getattr(arguments, name)]
    words += ["--no-strict"] if arguments.no_strict else []
    for name in ("threads", *OPTIONS):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def settled(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the measurement with their defaults.

    Raises:
        InvalidRequest: no such measurement, an option of another one, or a number below 1.
    """
    measure = arguments.measure
    if measure not in MEASURES:
        said = "name a measurement" if measure is None else f"unknown measurement {measure!r}"
        hint = nearest(measure or "", MEASURES)
        raise InvalidRequest(f"{said}{hint}; known: {', '.join(MEASURES)}; or use --make")
    found = {}
    for name, option in OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None and measure not in option.defaults:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidRequest(f"{flag} belongs to {', '.join(option.defaults)}, not {measure}")
        if measure in option.defaults:
            found[name] = option.defaults[measure] if value is None else value
        if isinstance(value, int) and value < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.threads is not None and arguments.threads < 1:
        raise InvalidRequest(f"--threads must be at least 1, got {arguments.threads}")
    return found


def written(path: Path, content: str) -> None:
    """Write a result.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error


def say(line: str) -> None:
    """Progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def made(arguments: argparse.Namespace) -> int:
    """Write a random checkpoint."""
    from dgemma.bench.make import make
    from dgemma.bench.shapes import shape

    unused = [name for name in ("json", "svg", "threads", *OPTIONS) if getattr(arguments, name)]
    if arguments.measure is not None or unused:
        wrong = arguments.measure or f"--{unused[0].replace('_', '-')}"
        raise InvalidRequest(f"--make only writes a checkpoint; leave out {wrong}")
    name, directory = arguments.make
    print(make(shape(name), directory))
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 whatever was measured."""
    if arguments.make is not None:
        return made(arguments)
    options = settled(arguments)
    from dgemma.bench.chart import as_svg
    from dgemma.bench.machine import busy
    from dgemma.bench.suite import SUITE, Where

    for path in (arguments.json, arguments.svg):
        if path is not None and not path.parent.is_dir():  # before hours of measuring
            raise InvalidRequest(f"cannot write {path}: there is no directory {path.parent}")
    if warning := busy():
        say(warning)
    where = Where(
        model=arguments.model, device=arguments.device, dtype=arguments.dtype,
        threads=arguments.threads, strict=not arguments.no_strict,
    )  # fmt: skip
    report: Report = SUITE[arguments.measure](where, options, command_line(arguments), say)
    print(report.as_markdown())
    if arguments.json is not None:
        written(arguments.json, json.dumps(report.as_values(), indent=1) + "\n")
    if arguments.svg is not None:
        machine = ", ".join(report.machine[name] for name in ("processor", "GPU", "commit"))
        caption = [report.command, ", ".join(report.subject.values()), machine]
        written(arguments.svg, as_svg(report.charts, caption))
    return 0
