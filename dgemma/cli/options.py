"""Options that several commands share: which model, and how to draw.

Knows argparse and `SamplingParams`. Knows nothing about what a command does with them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma.params import SamplingParams

if TYPE_CHECKING:
    from dgemma.llm import LLM


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


positive.__name__ = "number"  # what argparse calls it in an error


def _width(text: str) -> int | str:
    return text if text == "auto" else int(text)


_width.__name__ = "number or auto"  # what argparse calls it in an error


def _from_file(text: str) -> str:
    """The text itself, or that of the file behind an @."""
    if not text.startswith("@"):
        if os.path.isfile(text):
            raise argparse.ArgumentTypeError(f"{text} is a file; @{text} reads it")
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {text[1:]}: {error}") from error


def _pair(text: str) -> tuple[int, float]:
    name, _, value = text.partition("=")
    return int(name), float(value)


_pair.__name__ = "ID=VALUE"

SAMPLING: dict[str, tuple[Callable[[str], object], str]] = {
    "max_tokens": (int, "most tokens of the answer"),
    "seed": (int, "seed of the answer; drawn and reported when absent"),
    "max_steps": (int, "most denoising steps a canvas"),
    "entropy_bound": (float, "nats of summed entropy a step may accept"),
    "t_min": (float, "temperature at the last step"),
    "t_max": (float, "temperature at the first step"),
    "confidence_threshold": (float, "mean entropy in nats below which a stable canvas is done"),
    "stability_threshold": (int, "how many earlier canvases must equal the newest"),
    "canvas_length": (_width, "tokens of a canvas, or auto: as many as max-tokens needs"),
    "thinking_budget": (int, "most thought tokens (chat only)"),
    "temperature": (float, "factor of the schedule's temperatures; 0: the likeliest ids"),
    "top_p": (float, "keep the likeliest ids until their mass reaches it"),
    "top_k": (int, "keep so many of the likeliest ids"),
    "min_p": (float, "keep ids at least that many times as likely as the likeliest"),
    "min_tokens": (int, "no end before that many tokens of the answer"),
    "logprobs": (int, "report log-probabilities, and that many alternatives of each token"),
    "json_schema": (_from_file, "JSON that this schema admits: its text, or @FILE; true: any"),
    "regex": (str, "the answer matches this expression as a whole"),
    "grammar": (_from_file, "grammar of the answer, @FILE, markdown-table or code-fence"),
}
FLAGS = {
    "ignore_tail": "behind the first end id nothing must be stable or certain",
    "stable_prefix": "tell text as soon as it can no longer change, canvas finished or not",
}
LISTS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "stop": (str, "TEXT", "end before this text; repeatable"),
    "logit_bias": (_pair, "ID=VALUE", "add to the logit of an id; repeatable"),
    "allowed_token_ids": (int, "ID", "an id the answer may hold, no other; repeatable"),
    "logprob_token_ids": (int, "ID", "report this id's log-probability as well; repeatable"),
    "bad_words": (str, "TEXT", "the answer never holds this text; repeatable"),
    "choices": (str, "TEXT", "the answer is one of these texts"),
}
TOLD = ("logprobs", "logprob_token_ids")
"""Fields that change what is told of an answer on its way or beside it, not the answer."""


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Which model, and where and how it runs."""
    about = "bundled name, directory, or hub name in the local cache"
    if positional:
        parser.add_argument("model", nargs="?", default="nano", help=about)
    else:
        parser.add_argument("--model", default="nano", help=about)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument(
        "--no-strict", action="store_true", help="accept unknown keys in the model's config.json"
    )


def open_model(arguments: argparse.Namespace, **more: Any) -> LLM:
    """Load the model that the options of `add_model` name; `more` goes to `load`."""
    from dgemma.llm import load

    return load(
        arguments.model, device=arguments.device, dtype=arguments.dtype,
        strict=not arguments.no_strict, **more,
    )  # fmt: skip


def add_sampling(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Every field of `SamplingParams` but those of no use to a command."""

    def add(name: str, **how: Any) -> None:
        if name not in without:
            parser.add_argument(f"--{name.replace('_', '-')}", **how)

    for name, (kind, about) in SAMPLING.items():
        add(name, type=kind, help=about)
    for name, about in FLAGS.items():
        add(name, action="store_true", default=None, help=about)
    for name, (kind, metavar, about) in LISTS.items():
        how: dict[str, Any] = {"nargs": "+"} if name == "choices" else {"action": "append"}
        add(name, type=kind, metavar=metavar, help=about, **how)


def sampling(arguments: argparse.Namespace) -> SamplingParams:
    """The parameters that were given; the rest stays at the checkpoint's values.

    Raises:
        InvalidRequest: a value out of range.
    """
    values = {name: getattr(arguments, name, None) for name in (*SAMPLING, *FLAGS, *LISTS)}
    if values["logit_bias"] is not None:
        values["logit_bias"] = dict(values["logit_bias"])
    return SamplingParams(**values)
