"""Options that several commands share: the model, its device and dtype, the sampling parameters.

Does not import torch: a wrong name is refused before torch is loaded, which takes seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from dgemma.cli.progress import Progress, amount, clear_line
from dgemma.errors import ModelNotFound, unreadable
from dgemma.files.read import MOST_TEXT_BYTES, read_bytes
from dgemma.params import CONSTRAINT_FIELDS, OPTIONS, RELEASED, SamplingParams
from dgemma.types import ATTENTION_PATHS
from dgemma.weights.find import find_model

if TYPE_CHECKING:
    from dgemma.llm import LLM

DTYPES = ("auto", "float32", "bfloat16", "float16")


def say(line: str) -> None:
    """A line of progress or a remark, apart from the result."""
    clear_line()
    print(line, file=sys.stderr, flush=True)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        known = "'auto', 'cpu', 'cuda'"
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {known})")
    return text


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


positive.__name__ = "number"  # what argparse calls it in an error


def _number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


_number_or_auto.__name__ = "number or auto"  # what argparse calls it in an error


def _from_file(text: str) -> str:
    """The text itself, or the text of the file after an @."""
    if not text.startswith("@"):
        if os.path.isfile(text):
            raise argparse.ArgumentTypeError(f"{text} is a file; @{text} reads it")
        return text
    try:
        return read_bytes(text[1:], MOST_TEXT_BYTES, streams=True).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(unreadable(text[1:], error)) from error


def _pair(text: str) -> tuple[int, float]:
    name, _, value = text.partition("=")
    return int(name), float(value)


_pair.__name__ = "ID=VALUE"

SAMPLER = "sampler (defaults: the checkpoint's; the released ones are shown)"
GROUPS = {
    "max_tokens": "answer",
    "json_schema": "form of the answer (one of these)",
    "logit_bias": "single tokens",
    "max_steps": SAMPLER,
    "verdict": "answer",
    "quality": SAMPLER,
    "stop": "answer",
}
"""A parameter -> the group of its option, and of those after it; the common groups come first."""
SAMPLING: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
title = ""
for name in OPTIONS:
    title = GROUPS.get(name, title)
    SAMPLING[title].append(name)
KINDS: dict[str, Callable[[str], object]] = {
    "canvas_length": _number_or_auto,
    "restart_after": _number_or_auto,
    "logit_bias": _pair,
    "json_schema": _from_file,
    "grammar": _from_file,
}
"""Options that are read in a way of their own; the others as the types of their parameters."""
METAVARS = {int: "N", float: "X", _number_or_auto: "N", _pair: "ID=VALUE"}
NOT_THE_ANSWER = ("verdict", "logprobs", "logprob_token_ids")
"""Parameters that change the report about an answer, not the answer."""


def add_name(parser: argparse.ArgumentParser, then: str | None = None) -> None:
    """MODEL, or --model MODEL: the same for every command; `Parser.parse` joins the two.

    Args:
        then: the positional argument that follows; a single word is that, not the model.
    """
    about = "bundled name, directory, GGUF file, or hub name in the local cache, "
    about += "OWNER/NAME or OWNER/NAME:FILE.gguf (nano)"
    about += f"; a single word is {then}, of two words the first is MODEL" if then else ""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=about)
    parser.add_argument("--model", "-m", dest="named", metavar="MODEL", help="the same as MODEL")
    parser.set_defaults(then=then)


def add_model(
    parser: argparse.ArgumentParser, then: str | None = None, device: bool = True
) -> None:
    """The model, its device and dtype; see `add_name`."""
    add_name(parser, then)
    add = parser.add_argument
    if device:
        add("--device", type=_device, default="auto", help="auto, cpu or cuda (auto)")
        about = "reference: one request after the other; paged: all at once; "
        about += "auto: paged on CUDA, else reference"
        add("--attention", choices=ATTENTION_PATHS, default="auto", help=about)
    add("--dtype", choices=DTYPES, default="auto", help="number format (auto)")
    add("--no-strict", action="store_true", help="accept unknown keys in the model's config.json")


def path_of(arguments: argparse.Namespace) -> Path:
    """The model's directory or GGUF file; torch is not needed to find it.

    Raises:
        ModelNotFound: there is no such model.
    """
    try:
        return find_model(arguments.model)[0]
    except ModelNotFound as error:
        hint = f" A {arguments.then} of several words goes in quotes." if arguments.then else ""
        raise ModelNotFound(f"{error}{hint}") from error


def open_model(arguments: argparse.Namespace, **more: Any) -> LLM:
    """Load the model that the options of `add_model` name; `more` goes to `load`."""
    path_of(arguments)
    with Progress("loading torch", show=amount) as progress:
        from dgemma.llm import load

        progress.start(f"loading {arguments.model}")  # with an estimate of its own
        return load(
            arguments.model, device=arguments.device, dtype=arguments.dtype,
            attention=arguments.attention, strict=not arguments.no_strict, progress=progress,
            calibration=getattr(arguments, "calibration", None), **more,
        )  # fmt: skip


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The file that `open_model` reads in place of the checkpoint's own."""
    about = "file of `dgemma calibrate` (calibration.json beside the checkpoint)"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=about)


def add_sampling(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Every field of `SamplingParams` but those of no use to a command."""
    add_calibration(parser)
    types = get_type_hints(SamplingParams)
    for title, names in SAMPLING.items():
        group = parser.add_argument_group(title)
        for name in [name for name in names if name not in without]:
            first, about = get_args(types[name])[0], OPTIONS[name].help
            items = get_args(first)
            kind = KINDS.get(name) or (items[0] if items else first)
            how: dict[str, Any] = {"type": kind, "metavar": METAVARS.get(kind, "TEXT")}
            if kind is bool:
                how = {"action": "store_true", "default": None}
            elif get_origin(first) is Literal:
                how = {"choices": items}
            elif name == "choices":
                how["nargs"] = "+"
            elif items and name not in CONSTRAINT_FIELDS:
                how["action"] = "append"
            released = getattr(RELEASED, name)
            about += "" if released is None else f" ({released})"
            group.add_argument(f"--{name.replace('_', '-')}", help=about, **how)


def sampling(arguments: argparse.Namespace) -> SamplingParams:
    """The parameters that were given; the rest stays at the checkpoint's values.

    Raises:
        InvalidRequest: a value out of range.
    """
    values = {name: getattr(arguments, name, None) for name in OPTIONS}
    if values["logit_bias"] is not None:
        values["logit_bias"] = dict(values["logit_bias"])
    return SamplingParams(**values)
