"""The same examples and seeds under other sampler settings: what fewer steps cost in accuracy.

Differences are paired, example by example, so a small one is seen through the spread between easy
and hard examples. Knows settings and scores. Knows nothing about how a step is made.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dgemma.errors import InvalidRequest
from dgemma.evaluate.run import HELD_OUT_SEED, answers, score
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.tasks import make_example

NORMAL_95 = 1.96


@dataclass(slots=True)
class Setting:
    """What one setting gave.

    Attributes:
        name: as it was asked for; "" is the checkpoint's own setting.
        params: the same as parameters.
        exact: of each example, in their order.
        steps: denoising steps of each answer, those of discarded tries included.
        discarded: those of discarded tries alone.
        seconds: for all of them.
    """

    name: str
    params: SamplingParams
    exact: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    seconds: float = 0.0


def parse_setting(text: str) -> Setting:
    """From "max_steps=12,ignore_tail=true" to a setting.

    Raises:
        InvalidRequest: not of that form, an unknown field, or a value out of range.
    """
    values = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise InvalidRequest(f"{part!r}: write a setting as name=value,name=value")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = value.strip()
    params = SamplingParams.from_dict(values)
    if params.seed is not None or params.max_tokens is not None:
        raise InvalidRequest("seed and max_tokens belong to the examples; leave them out")
    return Setting(text, params)


def compare(
    llm: LLM, task: str, settings: Sequence[Setting], n: int, max_tokens: int,
    seed: int = HELD_OUT_SEED, report: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:  # fmt: skip
    """Fill `settings` with the results of `n` held-out examples of a task; see `evaluate`."""
    examples = [make_example(task, "heldout", seed, i) for i in range(n)]
    for setting in settings:
        start = time.monotonic()
        made = answers(llm, examples, "diffusion", seed, max_tokens, setting.params)
        for example, output in made:
            setting.exact.append(score(example, output)["exact"])
            setting.steps.append(output.usage.steps)
            setting.discarded.append(output.usage.discarded_steps)
            progress(f"{task} {setting.name or 'as released'}", len(setting.steps), n)
        setting.seconds = time.monotonic() - start
        report(f"{task} {setting.name or 'as released'}: {fmean(setting.exact):.3f} exact")


def difference(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences, and half the width of its 95 % interval."""
    pairs = [a - b for a, b in zip(ours, base, strict=True)]
    middle = fmean(pairs)
    spread = sum((p - middle) ** 2 for p in pairs) / max(1, len(pairs) - 1)
    return middle, NORMAL_95 * math.sqrt(spread / len(pairs))


def as_markdown(task: str, settings: Sequence[Setting]) -> str:
    """A table; the first setting is what the others are compared with."""
    base = settings[0]
    lines = [
        f"| {task}, n = {len(base.exact)} | exact | difference, points (95 %) | passes | "
        "ratio | discarded | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        points, half = difference(setting.exact, base.exact)
        gain = "" if setting is base else f"{100 * points:+.1f} ± {100 * half:.1f}"
        ratio = "" if setting is base else f"{fmean(setting.steps) / fmean(base.steps):.2f}"
        lines.append(
            f"| {setting.name or 'as released'} | {fmean(setting.exact):.1%} | {gain} | "
            f"{fmean(setting.steps):.2f} | {ratio} | {fmean(setting.discarded):.2f} | "
            f"{setting.seconds:.1f} |"
        )
    return "\n".join(lines)
