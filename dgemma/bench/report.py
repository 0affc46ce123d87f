"""A finished measurement: tables for people, values for programs, and how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from dgemma.bench.machine import facts

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A heading, column names with their units, rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Listing:
    """A heading and lines that keep their columns, such as formulas."""

    title: str
    text: str


@dataclass(frozen=True)
class Report:
    """The result of a benchmark.

    Attributes:
        title: of the measurement.
        command: how to measure it again.
        subject: the model, its sizes, device, dtype and attention path.
        tables: for people.
        values: for programs: every number, by name, unit in the name; see `plain`.
        notes: how to read it.
        lead: the result in a sentence.
        listings: after the tables.
        machine: see `machine.facts`.
    """

    title: str
    command: str
    subject: Mapping[str, str]
    tables: Sequence[Table]
    values: Mapping[str, Any]
    notes: Sequence[str] = ()
    machine: Mapping[str, str] = field(default_factory=facts)
    lead: str = ""
    listings: Sequence[Listing] = ()

    def as_markdown(self) -> str:
        """Heading, lead, tables, listings, notes, then command, model and machine."""
        lines = [f"## {self.title}", "", *([self.lead, ""] if self.lead else [])]
        for table in self.tables:
            lines += [f"### {table.title}", "", *as_table(table), ""]
        for listing in self.listings:
            lines += [f"### {listing.title}", "", "```text", listing.text, "```", ""]
        lines += ["### Notes", ""] if self.notes else []
        lines += [f"* {note}" for note in self.notes]
        lines += [""] if self.notes else []
        about = {"command": f"`{self.command}`", **self.subject, **self.machine}
        lines += [f"{name}: {value}  " for name, value in about.items()]
        return "\n".join(lines).rstrip()


def as_table(table: Table) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(table.head) + " |", "|---" * len(table.head) + "|"]
    for row in table.rows:
        assert len(row) == len(table.head), "a row with more or fewer cells than the head"
        lines.append("| " + " | ".join(as_cell(cell) for cell in row) + " |")
    return lines


def as_cell(cell: Cell) -> str:
    """A number with three or four significant digits; a dash for a missing one."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "-"
    if isinstance(cell, float):
        if cell == 0:
            return "0"
        if abs(cell) >= 1000:
            return f"{cell:,.0f}"
        return f"{cell:.{max(0, 2 - math.floor(math.log10(abs(cell))))}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def plain(value: Any) -> Any:
    """The same value for JSON: dataclasses with their properties, NaN and infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        names = [one.name for one in fields(value)]
        names += [name for name, one in vars(type(value)).items() if isinstance(one, property)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value
