"""`bench step`: one denoising step in parts, beside the ceilings of the machine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgemma.bench.ceilings import Product, copy_rate, matrix_rate, products
from dgemma.bench.clock import Growth, Watch
from dgemma.bench.drive import Where, prompt_ids, run
from dgemma.bench.report import Cell, Report, Table, plain
from dgemma.bench.stats import median, shares
from dgemma.llm import LLM

PARTS = ("attention", "dense", "experts", "vocabulary")
NOTES = (
    "Parts are timed around the modules in a run of its own; `rest` is the remainder of its steps: "
    "norms, embedding, sampler. `dense` has the MLPs and the self-conditioning, `experts` the "
    "router too.",
    "`products` are the step's matrix products alone: torch.matmul on preallocated operands at the "
    "step's own row counts, each the fastest way tried (weights as stored or transposed, the "
    "vocabulary whole or in tiles).",
    "Memory growth is the peak of anonymous resident memory during a step, over its value "
    "after one warm step.",
)


@dataclass(frozen=True)
class Split:
    """A step in milliseconds.

    Attributes:
        total_ms: median over steps without watching.
        watched_ms: median over steps with it.
        parts_ms: medians of the parts, and "rest"; they add up to `watched_ms`.
    """

    total_ms: float
    watched_ms: float
    parts_ms: dict[str, float]


def watch_parts(watch: Watch, llm: LLM) -> None:
    """Put timers around the parts of a step."""
    for layer in llm.model.layers:
        watch.add("attention", layer.attention)
        watch.add("dense", layer.mlp)
        watch.add("experts", layer.router)
        watch.add("experts", layer.experts)
    watch.add("dense", llm.model.self_conditioning)
    watch.add("vocabulary", llm.model.head, "read")


def split(llm: LLM, prompt: Sequence[int], steps: int) -> tuple[Split, float]:
    """The parts of a step, and the prefill time in milliseconds."""
    plain = run(llm, [prompt], steps)
    rows: list[dict[str, float]] = []
    with Watch(llm.choice.device) as watch:
        watch_parts(watch, llm)

        @contextmanager
        def around(number: int) -> Iterator[None]:
            watch.take()
            yield
            rows.append(watch.take())

        watched = run(llm, [prompt], steps, around)
    first = 1 if len(rows) > 1 else 0
    each = [
        shares(total, {part: row.get(part, 0.0) for part in PARTS})
        for total, row in zip(watched.step_ms[first:], rows[first:], strict=True)
    ]
    total = median(watched.steady_ms)
    parts = {part: median([row[part] for row in each]) for part in PARTS}
    return Split(median(plain.steady_ms), total, shares(total, parts)), plain.prefill_ms


def routed_rows(llm: LLM, prompt: Sequence[int]) -> list[list[int]]:
    """Rows that each expert of each layer gets in the second step of a canvas."""
    config = llm.config
    experts: list[Any] = [layer.experts for layer in llm.model.layers]
    seen: dict[nn.Module, list[int]] = {}

    def record(part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        index = arguments[1][: config.canvas_length]  # fp32 forwards are filled up with rows
        seen[part] = torch.bincount(index.flatten(), minlength=config.num_experts).tolist()

    with ExitStack() as stack:
        for part in experts:
            stack.callback(part.register_forward_pre_hook(record).remove)
        run(llm, [prompt], 2)
    return [seen[part] for part in experts]


def visible_keys(llm: LLM, prompt: int) -> dict[int, int]:
    """How many keys a canvas position sees in each layer."""
    config = llm.config
    window = config.sliding_window - 1
    return {
        number: config.canvas_length + (prompt if kind == "full_attention" else min(prompt, window))
        for number, kind in enumerate(config.layer_types)
    }


def growth(llm: LLM, prompt: Sequence[int]) -> Growth:
    """Memory growth during the third step, when one with a belief to take in has warmed up."""
    watch = Growth(llm.choice.device)

    def around(number: int) -> Any:
        return watch if number == 2 else nullcontext()

    run(llm, [prompt], 4, around)
    return watch


@dataclass(frozen=True)
class StepTimes:
    """All that `measure_step` found."""

    split: Split
    prefill_ms: float
    growth_bytes: int | None
    device_growth_bytes: int | None
    products: list[Product]
    copy_gb_s: float
    matrix_gflop_s: dict[str, float]

    @property
    def products_ms(self) -> dict[str, float]:
        """Milliseconds of the products of each part."""
        return {part: sum(p.ms for p in self.products if p.part == part) for part in PARTS}

    @property
    def step_over_products(self) -> float:
        """The whole step over its products alone."""
        return self.split.total_ms / sum(self.products_ms.values())


def measure_step(llm: LLM, prompt: int, steps: int) -> StepTimes:
    """Split, memory and ceilings of one model at one prompt length."""
    ids, device = prompt_ids(llm.config, prompt), llm.choice.device
    run(llm, [ids], 2)  # reads the weights from the disk, fills the allocator
    parts, prefill = split(llm, ids, steps)
    grown = growth(llm, ids)
    routed = routed_rows(llm, ids)
    keys = visible_keys(llm, prompt)
    with torch.inference_mode():
        found = products(llm.model, llm.config.canvas_length, keys, routed)
        rates = {
            str(dtype).removeprefix("torch."): matrix_rate(device, dtype)
            for dtype in (torch.bfloat16, torch.float32)
        }
        copied = copy_rate(device)
    return StepTimes(
        parts, prefill, grown.growth_bytes, grown.device_growth_bytes, found, copied, rates
    )


def tables(result: StepTimes) -> list[Table]:
    """The result for people."""
    alone = result.products_ms
    rows: list[list[Cell]] = []
    for part, ms in result.split.parts_ms.items():
        base = alone.get(part)
        flop = sum(p.flop for p in result.products if p.part == part) / 1e9
        share = ms / result.split.watched_ms
        rows.append([part, ms, f"{share:.0%}", base, ms / base if base else None, flop or None])
    total = sum(alone.values())
    flop = sum(p.flop for p in result.products) / 1e9
    whole = result.split.total_ms
    rows.append(["whole step, unwatched", whole, "", total, result.step_over_products, flop])
    head = ("part", "ms", "share", "products, ms", "step / products", "GFLOP")
    grown, device = result.growth_bytes, result.device_growth_bytes
    machine: list[list[Cell]] = [["copy bandwidth, read and write", result.copy_gb_s, "GB/s"]]
    for name, rate in result.matrix_gflop_s.items():
        machine.append([f"matrix rate, {name}", rate, "GFLOP/s"])
    machine += [
        ["rate of the step's products", flop / total * 1e3, "GFLOP/s"],
        ["prefill", result.prefill_ms, "ms"],
        ["growth of anonymous memory", None if grown is None else grown / 1e6, "MB"],
    ]
    if device is not None:
        machine.append(["growth of device memory", device / 1e6, "MB"])
    return [
        Table("A denoising step", head, rows),
        Table("Ceilings and memory", ("what", "value", "unit"), machine),
    ]


def report(where: Where, options: Namespace, say: Callable[[str], None]) -> Report:
    """Measure and lay out."""
    llm = where.open()
    found = measure_step(llm, options.prompt, options.steps)
    title = f"Denoising step, prompt {options.prompt}"
    return where.report(title, llm, tables(found), plain(found), NOTES)
