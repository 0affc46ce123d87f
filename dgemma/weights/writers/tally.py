"""What writing did to the weights: bytes and errors by class."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Kind:
    """Sums over the tensors of one class.

    Attributes:
        before, after: bytes.
        packed: matrices that were rounded to the new format.
        error, size: sums of squares of the differences of these, and of their numbers.
        worst: relative error of the worst matrix, and its name.
    """

    before: int = 0
    after: int = 0
    packed: int = 0
    error: float = 0.0
    size: float = 0.0
    worst: tuple[float, str] = (0.0, "")


@dataclass(slots=True)
class Tally:
    """All classes, and what is to be said of the files.

    Attributes:
        kinds: by their names.
        remarks: sentences.
        stored: numbers of tensors by their format in the new files.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)

    def size(self, kind: str, before: int, after: int) -> None:
        """Count bytes."""
        found = self.kinds.setdefault(kind, Kind())
        found.before += before
        found.after += after

    def error(self, kind: str, name: str, weight: Tensor, numbers: Tensor) -> None:
        """Count what rounding did to one matrix; `weight` is overwritten."""
        found = self.kinds.setdefault(kind, Kind())
        size = float(weight.square().sum())
        error = float(weight.sub_(numbers).square_().sum())
        found.packed += 1
        found.size += size
        found.error += error
        found.worst = max(found.worst, (math.sqrt(error / size) if size else 0.0, name))

    def as_values(self) -> dict[str, Any]:
        """Plain values, for programs."""
        rows = {
            name: {
                "bytes_before": kind.before,
                "bytes_after": kind.after,
                "packed": kind.packed,
                "error": math.sqrt(kind.error / kind.size) if kind.size else 0.0,
                "worst": {"error": kind.worst[0], "tensor": kind.worst[1]},
            }
            for name, kind in self.kinds.items()
        }
        return {"classes": rows, "formats": dict(self.stored), "remarks": self.remarks}

    def as_markdown(self) -> str:
        """A line for each class, one for all of them, and the remarks."""
        lines = [
            "| weights | MB before | MB after | ratio | packed | error | worst matrix |",
            "|---|---|---|---|---|---|---|",
        ]
        whole = Kind()
        for name, kind in self.kinds.items():
            lines.append(_row(name, kind))
            whole.before += kind.before
            whole.after += kind.after
            whole.packed += kind.packed
            whole.error += kind.error
            whole.size += kind.size
        lines.append(_row("all", whole))
        return "\n".join([*lines, *(f"* {remark}" for remark in self.remarks)])


def _row(name: str, kind: Kind) -> str:
    error = f"{math.sqrt(kind.error / kind.size):.2%}" if kind.size else "-"
    worst = f"{kind.worst[0]:.2%} {kind.worst[1]}" if kind.worst[1] else "-"
    ratio = f"{kind.after / kind.before:.2f}" if kind.before else "-"
    return (
        f"| {name} | {kind.before / 1e6:.3f} | {kind.after / 1e6:.3f} | {ratio} | {kind.packed} | "
        f"{error} | {worst} |"
    )
