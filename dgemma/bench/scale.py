"""`bench scale`: how the cost of a step grows with prompt, canvas, batch and layers.

Each is measured alone, the others held, and a straight line is fitted. Layers of the two kinds are
told apart: sliding ones must not care about a prompt beyond their window. Knows how a network is
stretched; knows nothing about other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dgemma.bench.chart import Lines
from dgemma.bench.clock import Watch, now_ms
from dgemma.bench.drive import narrowed, prompt_ids, run, stacked
from dgemma.bench.report import Table
from dgemma.bench.stats import Fit, fit, median
from dgemma.errors import InvalidRequest
from dgemma.llm import LLM
from dgemma.model.config import LayerType
from dgemma.model.size import peak
from dgemma.params import SamplingParams
from dgemma.types import Request

KINDS: dict[LayerType, str] = {
    "sliding_attention": "sliding layer",
    "full_attention": "full layer",
}
TURNS = 3
"""How often each width, batch and stack is measured; one turn goes up, the next down."""
Say = Callable[[str], None]
NOTES = (
    "Prompt: the network alone, the time of one layer of each kind and its attention alone, with "
    "the prompt encoded once and lengthened; layers of a kind are averaged. The line of sliding "
    "layers is fitted beyond the window only.",
    "Canvas, batch and layers: whole steps of the engine, vocabulary included. Layers repeat those "
    "of the model: n sliding ones before one full, and n full ones, so a slope is the cost of one.",
    "`change` is what the line rises from the first point to the last, of its value at the first.",
)


@dataclass
class Series:
    """One measured dependence.

    Attributes:
        axis, unit: what was changed, and of what it is a number.
        name: what was timed.
        points: (x, milliseconds).
        beyond: only points from this x on are fitted.
    """

    axis: str
    unit: str
    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    beyond: float = 0.0

    @property
    def fitted(self) -> list[tuple[float, float]]:
        """The points that the line is fitted to."""
        return [(x, y) for x, y in self.points if x >= self.beyond]

    @property
    def line(self) -> Fit | None:
        """The fitted line; None with fewer than two points."""
        return fit([x for x, _ in self.fitted], [y for _, y in self.fitted])

    @property
    def change(self) -> float | None:
        """How much the line rises over the fitted points, relative to its value at the first."""
        line = self.line
        if line is None:
            return None
        xs = [x for x, _ in self.fitted]
        first = line.at(min(xs))
        return line.slope * (max(xs) - min(xs)) / first if first else None


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes of keys and values at a prompt length: as the config predicts, and as allocated."""

    prompt: int
    predicted: int
    allocated: int


def sizes(text: str, name: str) -> list[int]:
    """Numbers separated by commas, in ascending order.

    Raises:
        InvalidRequest: something else, or a number below 1.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise InvalidRequest(f"{name} {text!r}: give positive numbers with commas between them")
    return sorted({int(word) for word in words})


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
    """What `dgemma info` says a request of that length takes, and the pages it has at its end."""
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
    predicted = peak(config, llm.model.dtype, prompt, sliding_pages=held.pages_sliding).cache
    return CacheSize(prompt, predicted, used)


def _network(
    llm: LLM, canvas: torch.Tensor, cache: Any, steps: int
) -> tuple[list[float], list[dict[str, float]]]:
    """Milliseconds of forwards over a canvas, and of the layers of each kind in them."""
    model, device = llm.model, llm.choice.device
    soft = model.embed_tokens(canvas)
    model.denoise(canvas, cache, soft)  # reserves the room for the canvas
    totals = []
    for _ in range(steps):
        start = now_ms(device)
        model.denoise(canvas, cache, soft)
        totals.append(now_ms(device) - start)
    rows: list[dict[str, float]] = []
    for part in ("", ", attention"):
        with Watch(device) as watch:
            for kind, layer in zip(llm.config.layer_types, model.layers, strict=True):
                watch.add(KINDS[kind] + part, layer.attention if part else layer)
            for number in range(steps):
                model.denoise(canvas, cache, soft)
                spent = watch.take()
                if part:
                    rows[number] |= spent
                else:
                    rows.append(spent)
    return totals, rows


def by_canvas(llm: LLM, canvases: Sequence[int], prompt: int, steps: int, say: Say) -> Series:
    """A step against the width of the canvas."""
    points = _swept(canvases, lambda width: _steps(narrowed(llm, width), 1, prompt, steps))
    for canvas, ms in points:
        say(f"canvas {canvas}: step {ms:.1f} ms")
    return Series("canvas", "position", "step", points)


def by_batch(llm: LLM, batches: Sequence[int], prompt: int, steps: int, say: Say) -> Series:
    """A step against how many requests share it."""
    points = _swept(batches, lambda count: _steps(llm, count, prompt, steps))
    for batch, ms in points:
        say(f"batch {batch}: step {ms:.1f} ms")
    return Series("batch", "request", "step", points)


def by_layers(llm: LLM, layers: Sequence[int], prompt: int, steps: int, say: Say) -> list[Series]:
    """A step against how many layers of each kind there are."""
    out = []
    for kind in KINDS:
        if kind not in llm.config.layer_types:
            continue
        last: tuple[LayerType, ...] = ("full_attention",) if kind != "full_attention" else ()
        name = "sliding layers before a full one" if last else "full layers"
        stacks = {count: (*[kind] * count, *last) for count in layers}
        measure = partial(_stacked_steps, llm, stacks, prompt, steps)
        points = _swept(layers, measure)
        for count, ms in points:
            say(f"{count} {name}: step {ms:.1f} ms")
        out.append(Series("layers", "layer", name, points))
    return out


def _stacked_steps(
    llm: LLM, stacks: Mapping[int, tuple[LayerType, ...]], prompt: int, steps: int, count: int
) -> Sequence[float]:
    return _steps(stacked(llm, stacks[count]), 1, prompt, steps)


def _swept(
    places: Sequence[int], measure: Callable[[int], Sequence[float]]
) -> list[tuple[float, float]]:
    """(place, median of its steps): forth and back, so that no place has the slow minutes alone."""
    found: dict[int, list[float]] = {place: [] for place in places}
    for turn in range(TURNS):
        for place in places if turn % 2 == 0 else reversed(places):
            found[place] += measure(place)
    return [(place, median(found[place])) for place in places]


def _steps(llm: LLM, batch: int, prompt: int, steps: int) -> Sequence[float]:
    """The steps behind the first, each request with ids of its own."""
    prompts = [prompt_ids(llm.config, prompt, seed) for seed in range(batch)]
    return run(llm, prompts, steps + 1).steady_ms


def values(series: Sequence[Series], caches: Sequence[CacheSize]) -> dict[str, Any]:
    """Every number, for programs."""
    rows = []
    for one in series:
        line = one.line
        rows.append(
            {
                "axis": one.axis,
                "name": one.name,
                "points": [list(point) for point in one.points],
                "fitted_from": one.beyond,
                "slope_ms": None if line is None else line.slope,
                "intercept_ms": None if line is None else line.intercept,
                "r2": None if line is None else line.r2,
                "change": one.change,
            }
        )
    held = [
        {"prompt": c.prompt, "predicted_bytes": c.predicted, "allocated_bytes": c.allocated}
        for c in caches
    ]
    return {"series": rows, "cache": held}


def tables(
    series: Sequence[Series], caches: Sequence[CacheSize]
) -> tuple[list[Table], list[Lines]]:
    """The results for people."""
    lines: list[list[Any]] = []
    for one in series:
        line = one.line
        numbers = [None] * 3 if line is None else [line.slope, line.intercept, line.r2]
        change = None if one.change is None else f"{one.change:+.1%}"
        xs = [x for x, _ in one.fitted or one.points]
        span = f"{min(xs):g} to {max(xs):g}"
        lines.append([one.axis, span, one.name, *numbers, change])
    head = ("axis", "fitted", "what", "slope, ms each", "at zero, ms", "R²", "change")
    out = [Table("Fitted lines", head, lines)]
    charts = []
    for axis in dict.fromkeys(one.axis for one in series):
        own = [one for one in series if one.axis == axis]
        places = sorted({x for one in own for x, _ in one.points})
        held = [dict(one.points) for one in own]
        rows = [[f"{x:g}", *[points.get(x) for points in held]] for x in places]
        names = [f"{one.name}, ms" for one in own]
        out.append(Table(f"By {axis}", (axis, *names), rows))
        # The prefill would flatten all else.
        shown = [one for one in own if one.name != "prefill"]
        charts.append(
            Lines(
                f"Cost by {axis}", f"{axis}, {own[0].unit}s", "ms",
                {one.name: one.points for one in shown}, {one.name: one.line for one in shown},
            )
        )  # fmt: skip
    if caches:
        cells: list[list[Any]] = [
            [f"{c.prompt}", c.predicted / 1e6, c.allocated / 1e6, c.allocated / c.predicted]
            for c in caches
        ]
        columns = ("prompt", "predicted, MB", "in its pages, MB", "ratio")
        out.append(Table("Keys and values of one request", columns, cells))
    return out, charts
