"""A finished measurement: tables, charts, and what it takes to repeat it.

Knows layout: Markdown, plain values. Knows nothing about what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgemma.bench.chart import Chart

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A heading, column names with their units, rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        title: what was measured.
        command: how to measure it again.
        subject: the model, its sizes, device and dtype.
        machine: see `machine.facts`.
        tables, charts: for people.
        values: for programs: every number, by name, unit in the name.
        notes: how to read it.
    """

    title: str
    command: str
    subject: Mapping[str, str]
    machine: Mapping[str, str]
    tables: Sequence[Table]
    values: Mapping[str, Any]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def as_markdown(self) -> str:
        """Heading, tables, notes, then command, model and machine."""
        lines = [f"### {self.title}", ""]
        for table in self.tables:
            lines += [f"**{table.title}**", "", *as_table(table), ""]
        lines += [f"* {note}" for note in self.notes]
        lines += [""] if self.notes else []
        about = {"command": f"`{self.command}`", **self.subject, **self.machine}
        lines += [f"{name}: {value}  " for name, value in about.items()]
        return "\n".join(lines).rstrip()

    def as_values(self) -> dict[str, Any]:
        """Everything but the charts, for JSON; NaN and infinity become null."""
        tables = [
            {"title": table.title, "head": list(table.head), "rows": [list(r) for r in table.rows]}
            for table in self.tables
        ]
        values: dict[str, Any] = finite(
            {
                "title": self.title,
                "command": self.command,
                "subject": dict(self.subject),
                "machine": dict(self.machine),
                "values": dict(self.values),
                "tables": tables,
                "notes": list(self.notes),
            }
        )
        return values


def as_table(table: Table) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(table.head) + " |", "|---" * len(table.head) + "|"]
    for row in table.rows:
        assert len(row) == len(table.head), "a row with more or fewer cells than the head"
        lines.append("| " + " | ".join(as_cell(cell) for cell in row) + " |")
    return lines


def as_cell(cell: Cell) -> str:
    """A number with three or four significant digits; a dash for what is missing."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "-"
    if isinstance(cell, float):
        if cell == 0:
            return "0"
        if abs(cell) >= 1000:
            return f"{cell:,.0f}"
        return f"{cell:.{max(0, 2 - math.floor(math.log10(abs(cell))))}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def finite(value: Any) -> Any:
    """The same value with NaN and infinity as None, which JSON knows."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(inner) for inner in value]
    return value
