"""`python -m bench.scale`: how the cost of a step grows with prompt, canvas, batch and layers.

Each is measured alone, the others held, and a straight line is fitted. Sliding and full layers are
measured apart: sliding ones must not care about a prompt beyond their window.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.chart import Lines
from bench.run import Say, main, sizes
from bench.stats import Fit, fit
from bench.stretch import narrowed, stacked
from dgemma.bench.clock import Watch, now_ms
from dgemma.bench.drive import Where, prompt_ids, run
from dgemma.bench.report import Cell, Report, Table
from dgemma.bench.stats import median
from dgemma.cli.options import positive
from dgemma.errors import InvalidRequest, nearest
from dgemma.llm import LLM
from dgemma.model.config import LayerType
from dgemma.model.size import peak
from dgemma.params import SamplingParams
from dgemma.types import Request

KINDS: dict[LayerType, str] = {
    "sliding_attention": "sliding layer",
    "full_attention": "full layer",
}
Times = Callable[[LLM, int], Sequence[float]]
"""From a model and a number of requests to the milliseconds of their steps together."""
TURNS = 3
"""How often each width, batch and stack is measured; one turn goes up, the next down."""
AXES = ("prompt", "canvas", "batch", "layers")
NOTES = (
    "Prompt: the network alone, the time of one layer of each kind and its attention alone, with "
    "the prompt encoded once and lengthened; layers of a kind are averaged. The line of sliding "
    "layers is fitted beyond the window only.",
    "Canvas, batch and layers: whole steps of the engine, vocabulary included. Layers repeat those "
    "of the model: n sliding ones before one full, and n full ones, so a slope is the cost of one.",
    "`change` is the rise of the line from first to last point, over its value at the first.",
)


@dataclass
class Series:
    """One measured dependence.

    Attributes:
        axis, unit: the quantity that was changed, and its unit.
        name: the part that was timed.
        points: (x, milliseconds).
        fitted_from: only points from this x on are fitted.
    """

    axis: str
    unit: str
    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    fitted_from: float = 0.0

    def fitted(self) -> list[tuple[float, float]]:
        """The points that the line is fitted to."""
        return [(x, y) for x, y in self.points if x >= self.fitted_from]

    @property
    def line(self) -> Fit | None:
        """The fitted line; None with fewer than two points."""
        return fit([x for x, _ in self.fitted()], [y for _, y in self.fitted()])

    @property
    def change(self) -> float | None:
        """How much the line rises over the fitted points, relative to its value at the first."""
        line = self.line
        if line is None:
            return None
        xs = [x for x, _ in self.fitted()]
        first = line.at(min(xs))
        return line.slope * (max(xs) - min(xs)) / first if first else None


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes of keys and values at a prompt length: as the config predicts, and as allocated."""

    prompt: int
    predicted_bytes: int
    allocated_bytes: int


@torch.inference_mode()
def by_prompt(
    llm: LLM, prompts: Sequence[int], steps: int, say: Say
) -> tuple[list[Series], list[CacheSize]]:
    """Layers of each kind, the network and the prefill against the length of the prompt."""
    model, config, device = llm.model, llm.config, llm.choice.device
    ids = torch.tensor([prompt_ids(config, max(prompts))], device=device)
    canvas = torch.tensor([prompt_ids(config, config.canvas_length, 1)], device=device)
    cache = model.new_cache(1, max(prompts) + config.canvas_length)
    window = config.sliding_window
    counts = {kind: config.layer_types.count(kind) for kind in KINDS}
    found: dict[str, Series] = {}

    def add(name: str, prompt: int, ms: float, beyond: float = 0.0) -> None:
        series = found.setdefault(name, Series("prompt", "token", name, [], beyond))
        series.points.append((prompt, ms))

    caches, done, prefill = [], 0, 0.0
    for prompt in prompts:
        start = now_ms(device)
        model.encode(ids[:, done:prompt], cache)
        prefill += now_ms(device) - start
        done = prompt
        add("prefill", prompt, prefill)
        totals, rows = _network(llm, canvas, cache, steps)
        add("network step", prompt, median(totals))
        for kind, name in KINDS.items():
            for part in ("", ", attention") if counts[kind] else ():
                ms = median([row[name + part] for row in rows]) / counts[kind]
                beyond = float(window) if kind == "sliding_attention" else 0.0
                add(name + part, prompt, ms, beyond)
        caches.append(_pages(llm, prompt))
        say(f"prompt {prompt}: network step {median(totals):.1f} ms, prefill {prefill:.0f} ms")
    return list(found.values()), caches


def _pages(llm: LLM, prompt: int) -> CacheSize:
    """The cache of a request of that length: as `dgemma info` predicts it, and in its pages."""
    engine, config = llm.engine, llm.config
    ids = prompt_ids(config, prompt, seed=prompt)  # unlike any other: nothing is shared
    engine.forget()
    params = SamplingParams(seed=0, max_steps=4, max_tokens=config.canvas_length)
    held = None
    for event in llm.submit(Request(token_ids=ids, params=params, frames=True)):
        if event.type == "frame" and held is None:  # three steps are still to come
            held = llm.counters()
    assert held is not None
    one = engine.page_bytes
    full = held.pages_full_used + held.pages_full_cached
    sliding = held.pages_sliding - held.pages_sliding_free
    used = full * one["full_attention"] + sliding * one["sliding_attention"]
    dtype, cache = llm.model.dtype, llm.model.cache_dtypes["full_attention"]
    predicted = peak(
        config, dtype, prompt, sliding_pages=held.pages_sliding,
        cache_dtype="auto" if cache == dtype else "fp8",
    )  # fmt: skip
    return CacheSize(prompt, predicted.cache, used)


def _network(
    llm: LLM, canvas: torch.Tensor, cache: Any, steps: int
) -> tuple[list[float], list[dict[str, float]]]:
    """Milliseconds of forwards over a canvas, and of the layers of each kind in them."""
    model, device = llm.model, llm.choice.device
    soft = model.head.embed(canvas)
    model.denoise(canvas, cache, soft)  # reserves the room for the canvas
    totals = []
    for _ in range(steps):
        start = now_ms(device)
        model.denoise(canvas, cache, soft)
        totals.append(now_ms(device) - start)
    rows: list[dict[str, float]] = [{} for _ in range(steps)]
    for part in ("", ", attention"):
        with Watch(device) as watch:
            for kind, layer in zip(llm.config.layer_types, model.layers, strict=True):
                watch.add(KINDS[kind] + part, layer.attention if part else layer)
            for row in rows:
                model.denoise(canvas, cache, soft)
                row.update(watch.take())
    return totals, rows


def by_layers(llm: LLM, kind: LayerType, layers: Sequence[int], times: Times, say: Say) -> Series:
    """A step against how many layers of a kind there are; the last one is always full."""
    last: tuple[LayerType, ...] = ("full_attention",) if kind != "full_attention" else ()
    name = "sliding layers before a full one" if last else "full layers"
    return _swept(
        Series("layers", "layer", name), layers,
        lambda count: times(stacked(llm, (*[kind] * count, *last)), 1), say,
    )  # fmt: skip


def _swept(
    series: Series, places: Sequence[int], measure: Callable[[int], Sequence[float]], say: Say
) -> Series:
    """The median step at each place, forth and back: no place has the slow minutes alone."""
    found: dict[int, list[float]] = {place: [] for place in places}
    for turn in range(TURNS):
        for place in places if turn % 2 == 0 else reversed(places):
            found[place] += measure(place)
    for place, times in found.items():
        series.points.append((place, median(times)))
        say(f"{series.axis} {place}, {series.name}: {median(times):.1f} ms")
    return series


def tables(series: Sequence[Series], caches: Sequence[CacheSize]) -> list[Table]:
    """The results for people."""
    lines: list[list[Cell]] = []
    for one in series:
        line = one.line
        numbers = [None] * 3 if line is None else [line.slope, line.intercept, line.r2]
        change = None if one.change is None else f"{one.change:+.1%}"
        xs = [x for x, _ in one.fitted() or one.points]
        lines.append([one.axis, f"{min(xs):g} to {max(xs):g}", one.name, *numbers, change])
    head = ("axis", "fitted", "what", "slope, ms each", "at zero, ms", "R²", "change")
    out = [Table("Fitted lines", head, lines)]
    for axis, own in by_axis(series).items():
        places = sorted({x for one in own for x, _ in one.points})
        held = [dict(one.points) for one in own]
        rows = [[f"{x:g}", *[points.get(x) for points in held]] for x in places]
        out.append(Table(f"By {axis}", (axis, *[f"{one.name}, ms" for one in own]), rows))
    if caches:
        cells: list[list[Cell]] = [
            [str(c.prompt), c.predicted_bytes / 1e6, c.allocated_bytes / 1e6,
             c.allocated_bytes / c.predicted_bytes]
            for c in caches
        ]  # fmt: skip
        columns = ("prompt", "predicted, MB", "in its pages, MB", "ratio")
        out.append(Table("Keys and values of one request", columns, cells))
    return out


def charts(series: Sequence[Series]) -> list[Lines]:
    """A chart for each axis; the prefill would flatten all else."""
    out: list[Lines] = []
    for axis, own in by_axis(series).items():
        shown = [one for one in own if one.name != "prefill"]
        points = {one.name: one.points for one in shown}
        lines = {one.name: one.line for one in shown}
        out.append(Lines(f"Cost by {axis}", f"{axis}, {own[0].unit}s", "ms", points, lines))
    return out


def by_axis(series: Sequence[Series]) -> dict[str, list[Series]]:
    """The series of each axis."""
    axes = dict.fromkeys(one.axis for one in series)
    return {axis: [one for one in series if one.axis == axis] for axis in axes}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the program."""
    add = parser.add_argument
    add("--axes", default=",".join(AXES), help="which of prompt,canvas,batch,layers (all)")
    add("--prompt", type=positive, default=64, help="prompt tokens on the other axes (64)")
    add("--steps", type=positive, default=4, help="denoising steps of a run (4)")
    for name, values, about in (
        ("--prompts", "64,256,512,1024,1536,2048,4096,8192,16384,32768", "prompt lengths"),
        ("--canvases", "16,32,64,128,256", "canvas widths"),
        ("--batches", "1,2,4,8", "requests at once"),
        ("--layers", "1,2,3,4,5,6", "numbers of layers"),
    ):
        add(name, type=sizes, default=values, help=f"{about} ({values})")


def measure(where: Where, options: argparse.Namespace, say: Say) -> tuple[Report, Sequence[Lines]]:
    """All axes that were asked for."""
    axes = [axis.strip() for axis in options.axes.split(",")]
    for axis in axes:
        if axis not in AXES:
            known = ", ".join(AXES)
            raise InvalidRequest(f"unknown axis {axis!r}{nearest(axis, AXES)}; known: {known}")
    llm, steps = where.open(), options.steps

    def times(model: LLM, batch: int) -> Sequence[float]:
        """The steps after the first, each request with ids of its own."""
        prompts = [prompt_ids(model.config, options.prompt, seed) for seed in range(batch)]
        return run(model, prompts, steps + 1).steady_ms

    series: list[Series] = []
    caches: list[CacheSize] = []
    if "prompt" in axes:
        series, caches = by_prompt(llm, options.prompts, steps, say)
    if "canvas" in axes:
        one = Series("canvas", "position", "step")
        series.append(_swept(one, options.canvases, lambda n: times(narrowed(llm, n), 1), say))
    if "batch" in axes:
        one = Series("batch", "request", "step")
        series.append(_swept(one, options.batches, lambda n: times(llm, n), say))
    for kind in filter(llm.config.layer_types.count, KINDS) if "layers" in axes else ():
        series.append(by_layers(llm, kind, options.layers, times, say))
    values = {"series": series, "cache": caches}
    title = "How the cost of a step grows"
    return where.report(title, llm, tables(series, caches), values, NOTES), charts(series)


if __name__ == "__main__":
    sys.exit(main("scale", __doc__, configure, measure))
