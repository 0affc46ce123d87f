"""Charts as SVG text: points of several series with their fitted lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.stats import Fit

WIDTH, HEIGHT = 840, 360
LEFT, RIGHT, TOP, BOTTOM = 80, 240, 46, 56
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#000000")
"""Okabe and Ito's palette, which the colour-blind can read too."""


@dataclass(frozen=True)
class Lines:
    """Points of several series, each with the line that was fitted to it, or else joined.

    Attributes:
        title, x, y: names of the axes with their units.
        series: name -> points.
        fits: name -> line, if one was fitted.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    fits: Mapping[str, Fit | None]

    def draw(self) -> list[str]:
        """SVG elements in a box of WIDTH x HEIGHT."""
        points = [p for series in self.series.values() for p in series]
        across = ticks(max([x for x, _ in points], default=1.0))
        up = ticks(max([y for _, y in points], default=1.0))
        out = [*frame(self.title, self.x, self.y), *y_axis(up), *legend(list(self.series))]
        for value in across:
            out.append(text(x_at(value, across), HEIGHT - BOTTOM + 18, f"{value:g}", "middle"))
        for k, (name, series) in enumerate(self.series.items()):
            line, path = self.fits.get(name), sorted(series)
            if line is not None and series:
                path = [(x, max(0.0, line.at(x))) for x in (path[0][0], path[-1][0])]
            places = " ".join(f"{x_at(x, across):.1f},{y_at(y, up):.1f}" for x, y in path)
            out.append(
                f'<polyline points="{places}" fill="none" stroke="{colour(k)}" stroke-width="1.5"/>'
            )
            for x, y in series:
                out.append(
                    f'<circle cx="{x_at(x, across):.1f}" cy="{y_at(y, up):.1f}" r="4" '
                    f'fill="{colour(k)}"><title>{escape(name)}: {x:g}, {y:.4g}</title></circle>'
                )
        return out


def as_svg(charts: Sequence[Lines], caption: Sequence[str]) -> str:
    """One document with the charts below each other and lines of a caption at the foot."""
    foot = HEIGHT * len(charts)
    height = foot + 10 + 14 * len(caption)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for place, chart in enumerate(charts):
        lines += [f'<g transform="translate(0 {place * HEIGHT})">', *chart.draw(), "</g>"]
    for row, words in enumerate(caption):
        lines.append(text(10, foot + 14 * (row + 1), words, "start", "#555555", 10))
    return "\n".join([*lines, "</svg>"]) + "\n"


def colour(index: int) -> str:
    """The colour of a series."""
    return COLOURS[index % len(COLOURS)]


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to just above `top`, four to six of them."""
    top = top if top > 0 and math.isfinite(top) else 1.0
    raw = top / 4
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
    return [step * i for i in range(math.ceil(top / step * 0.999) + 1)]


def x_at(value: float, scale: Sequence[float]) -> float:
    """Pixels from the left."""
    return LEFT + (WIDTH - LEFT - RIGHT) * value / scale[-1]


def y_at(value: float, scale: Sequence[float]) -> float:
    """Pixels from the top."""
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / scale[-1]


def text(x: float, y: float, words: str, anchor: str, fill: str = "#000000", size: int = 12) -> str:
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}">{escape(words)}</text>'
    )


def frame(title: str, x: str, y: str) -> list[str]:
    """Title, axes and their names."""
    foot, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    return [
        text(LEFT, 24, title, "start", size=15),
        f'<path d="M{LEFT} {TOP} V{foot} H{WIDTH - RIGHT}" fill="none" stroke="#000000"/>',
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x, "middle"),
        f'<g transform="rotate(-90 18 {middle})">{text(18, middle, y, "middle")}</g>',
    ]


def y_axis(scale: Sequence[float]) -> list[str]:
    """Numbers and faint lines."""
    out = []
    for value in scale:
        y = y_at(value, scale)
        out.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        out.append(text(LEFT - 6, y + 4, f"{value:g}", "end"))
    return out


def legend(names: Sequence[str]) -> list[str]:
    """A coloured square and a name for each series."""
    out = []
    for k, name in enumerate(names):
        x, y = WIDTH - RIGHT + 14, TOP + 6 + 20 * k
        out.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{colour(k)}"/>')
        out.append(text(x + 17, y + 10, name, "start"))
    return out
