"""`python -m bench.vocabulary`: the head when it is sure of its ids, and when it is not.

Hidden states are made for the model's own table, so that a row's likeliest id has a chosen logit.
Both sides run in turns in this process: every id in the belief, and only the blocks that it needs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.chart import Lines
from bench.run import Say, main
from dgemma.bench.drive import Where
from dgemma.bench.report import Cell, Report, Table, plain
from dgemma.bench.stats import median, ratio
from dgemma.cli.options import positive
from dgemma.errors import InvalidRequest
from dgemma.kernels.controls import Controls
from dgemma.kernels.embedding import EmbeddingTable
from dgemma.kernels.head_output import HeadOutput
from dgemma.kernels.head_tiles import TiledReader

TEMPERATURE = 0.6
KINDS: dict[str, tuple[float, float]] = {
    "flat": (0.0, 0.0),
    "peaked": (25.0, 25.0),
    "less peaked": (15.0, 15.0),
    "every second row peaked": (25.0, 0.0),
}
"""Logits of the likeliest id, before the cap, in even and in odd rows; the others are normal."""

NOTES = (
    "CPU time of the process, both sides in turns, medians. `all ids`: the belief is the sum over "
    "the whole vocabulary. `needed`: blocks of 256 ids that weigh nothing in a row are left out. "
    "Argmax, sample and entropy are the same bits; the run stops if they are not.",
    "`difference`: the largest of a row's belief, relative to its length.",
    "The streamed head is measured whatever the size of the vocabulary; small ones are read row "
    "by row and leave nothing out.",
)


@dataclass(frozen=True)
class HeadTimes:
    """Both sides on one kind of logits; milliseconds of each run."""

    kind: str
    mean_entropy: float
    difference: float
    all_ms: list[float]
    needed_ms: list[float]

    @property
    def ratio(self) -> float:
        """Needed over all."""
        return ratio(self.needed_ms, self.all_ms)


def hidden_states(table: EmbeddingTable, logits: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that point at random ids of the table: fp32 [N] their logits -> [N, D]."""
    ids = torch.randint(0, table.size, (len(logits),), generator=generator)
    rows = table.rows(ids).float()
    noise = torch.randn(rows.shape, generator=generator)
    # Without the cap's share the chosen id would get `logits` plus noise; that is near enough.
    pointed = logits[:, None] * rows / rows.square().sum(-1, keepdim=True)
    hidden: Tensor = (noise / rows.norm(dim=-1).mean() + pointed).to(table.dtype)
    return hidden


def measure_kind(
    table: EmbeddingTable, softcap: float, kind: str, rows: int, runs: int
) -> HeadTimes:
    """Run both sides in turns.

    Raises:
        InvalidRequest: they do not agree on an id or an entropy.
    """
    generator = torch.Generator().manual_seed(0)
    even, odd = KINDS[kind]
    logits = torch.where(torch.arange(rows) % 2 == 0, even, odd)
    hidden = hidden_states(table, logits, generator)
    uniforms = torch.rand(rows, generator=generator)
    warm = torch.full((rows,), TEMPERATURE)
    readers = [TiledReader(table, softcap, table.device) for _ in range(2)]
    readers[0].leaves_out = False
    likely: Tensor | None = None

    def read(side: int) -> HeadOutput:
        return readers[side].read(hidden, warm, uniforms, Controls(), likely)

    first = read(0)
    likely = first.argmax  # as the step before would have it
    second = read(1)
    for name in ("argmax", "sample", "entropy"):
        if not torch.equal(getattr(first, name), getattr(second, name)):
            raise InvalidRequest(f"{kind}: the two sides differ in {name}")
    apart = (first.soft.float() - second.soft.float()).norm(dim=-1)
    spent: list[list[float]] = [[], []]
    for run in range(runs):
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            spent[side].append(_cpu_ms(lambda side=side: read(side)))  # type: ignore[misc]
    difference = float((apart / first.soft.float().norm(dim=-1)).max())
    return HeadTimes(kind, float(first.entropy.mean()), difference, *spent)


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e3


def table_of(found: Sequence[HeadTimes], rows: int) -> Table:
    """The result for people."""
    head = ("logits", "mean entropy, nats", "all ids, ms", "needed, ms", "ratio", "difference")
    cells: list[list[Cell]] = [
        [one.kind, one.mean_entropy, median(one.all_ms), median(one.needed_ms), one.ratio,
         f"{one.difference:.0e}"]
        for one in found
    ]  # fmt: skip
    return Table(f"The head on {rows} positions", head, cells)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    parser.add_argument("--rows", type=positive, default=256, help="positions (256)")
    parser.add_argument("--runs", type=positive, default=5, help="runs of each side (5)")


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """Every kind of logits.

    Raises:
        InvalidRequest: the model does not run on a CPU in 16 bit.
    """
    llm = where.open()
    if llm.choice.device.type != "cpu" or llm.choice.dtype == torch.float32:
        raise InvalidRequest(
            "nothing is left out in fp32 or on CUDA; use --device cpu --dtype bfloat16"
        )
    found = []
    with torch.inference_mode():
        for kind in KINDS:
            head = llm.model.head
            one = measure_kind(head.table, head.softcap, kind, options.rows, options.runs)
            say(f"{kind} logits: needed / all ids {one.ratio:.3f}")
            found.append(one)
    tables = [table_of(found, options.rows)]
    return where.report("The vocabulary", llm, tables, plain(found), NOTES), ()


if __name__ == "__main__":
    sys.exit(main("vocabulary", __doc__, configure, measure))
