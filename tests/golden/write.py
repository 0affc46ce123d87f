"""Writes the golden tokens anew and shows what changed.

    python -m tests.golden.write            write them; refuse what is too close to call
    python -m tests.golden.write --check    show what would change, write nothing
    python -m tests.golden.write sudoku     only cases with "sudoku" in their name

Exit code 1 where a case was refused, or where `--check` found a change. A refused case keeps what
was frozen before. A margin is measured anew where the request, the answer or the model changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tests.golden.cases import Found, cases
from tests.golden.margin import LEAST, RUNS, measure
from tests.golden.replay import (
    FOLDER,
    MODELS,
    WRITE,
    Case,
    differences,
    dump,
    line,
    load,
    model,
    read,
    run,
)

Runner = Callable[[dict[str, Any]], Case]
Measure = Callable[[dict[str, Any], Case], float]


def renew(
    old: dict[str, Case],
    wanted: Iterable[Found],
    checkpoint: str,
    runner: Runner,
    measured: Measure,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Case], Counter[str]]:
    """All cases as they are to be frozen, and how many are "new", "changed", "same", "refused".

    Args:
        old: what is frozen now.
        wanted: the cases that are to be there; others are dropped.
        checkpoint: hash of the model.
        runner: answers a request.
        measured: the margin of an answer.
        say: takes what a person should read.
    """
    out: dict[str, Case] = {}
    counts: Counter[str] = Counter()
    for name, kind, request in wanted:
        before = old.get(name)
        answer = runner(request)
        lines = changes(before, request, checkpoint, answer) if before else ["new"]
        if before and not lines:
            out[name] = before | {"kind": kind}
            counts["same"] += 1
            continue
        margin = measured(request, answer)
        for text in lines:
            say(f"{name}: {text}")
        if not before:
            say(f"    {line(answer.get('text', answer['tokens']))}")
        if margin < LEAST:
            counts["refused"] += 1
            say(f"{name}: REFUSED, another CPU's rounding could change it: noise of {LEAST} on "
                f"the logits gave another answer in one of {RUNS} runs, or a token leads by less "
                "(another seed, fewer steps or an easier prompt helps)")  # fmt: skip
            if before:
                out[name] = before
            continue
        counts["changed" if before else "new"] += 1
        out[name] = {"kind": kind, "checkpoint": checkpoint, "margin": margin,
                     "request": request, "answer": answer}  # fmt: skip
    for name in old.keys() - out.keys():
        counts["dropped"] += 1
        say(f"{name}: dropped")
    return out, counts


def changes(before: Case, request: dict[str, Any], checkpoint: str, answer: Case) -> list[str]:
    """What differs from a frozen case, a text each."""
    lines = []
    if before["checkpoint"] != checkpoint:
        lines.append("another model (retrained, or made by another recipe)")
    if line(before["request"]) != line(request):
        lines.append("another request")
    return lines + differences(before["answer"], answer)


def write(only: str, check: bool, folder: Path = FOLDER) -> int:
    """Renew the files of all models; the exit code."""
    total: Counter[str] = Counter()
    least: dict[str, float] = {}
    for name in MODELS:
        llm, checkpoint = model(name)
        old = read(name)
        with tempfile.TemporaryDirectory() as directory:
            shaky, _ = load(name, Path(directory))
        wanted = [found for found in cases(name, llm) if only in found[0]]
        new, counts = renew(
            {k: v for k, v in old.items() if only in k}, wanted, checkpoint,
            lambda request, llm=llm: run(llm, request),  # type: ignore[misc]
            lambda request, answer, shaky=shaky: measure(shaky, request, answer),  # type: ignore[misc]
        )  # fmt: skip
        total += counts
        order = [found[0] for found in cases(name, llm)]
        both = {k: v for k, v in old.items() if only not in k} | new
        least[name] = min((case["margin"] for case in both.values()), default=0.0)
        if not check:
            folder.mkdir(exist_ok=True)
            text = dump({key: both[key] for key in order if key in both})
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    print(", ".join(f"{count} {what}" for what, count in sorted(total.items())))
    print("smallest margins:", ", ".join(f"{name} {value:g}" for name, value in least.items()))
    moved = total["new"] + total["changed"] + total["dropped"]
    if check and moved:
        print(f"nothing was written; to freeze this: {WRITE}")
    return int(bool(total["refused"] or (check and moved)))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=WRITE, description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="", help="a part of the cases' names")
    parser.add_argument("--check", action="store_true", help="show changes, write nothing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    return write(given.only, given.check)


if __name__ == "__main__":
    sys.exit(main())
