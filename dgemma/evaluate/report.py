"""Lays out what `evaluate` counted, as a Markdown table or plain values."""

from __future__ import annotations

from typing import Any

from dgemma.evaluate.run import BLANK_BINS, Tally
from dgemma.types import Mode

Results = dict[tuple[str, Mode], Tally]


def as_values(results: Results) -> list[dict[str, Any]]:
    """One mapping per task and mode, for programs."""
    return [
        {
            "task": task,
            "mode": mode,
            "n": tally.count,
            "scores": {name: tally.mean(name) for name in tally.scores},
            "mean_steps": tally.steps / max(1, tally.count),
            "tokens_per_step": tally.tokens / max(1, tally.steps),
            "by_blanks": {f"{a}-{b}": list(v) for (a, b), v in sorted(tally.bins.items())},
        }
        for (task, mode), tally in results.items()
    ]


def as_markdown(results: Results) -> str:
    """The README's table: a line per task and mode, then Sudoku by number of blanks."""
    lines = [
        "| task | mode | n | exact | other scores | model passes | tokens a pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, mode), tally in results.items():
        others = ", ".join(
            f"{name} {tally.mean(name):.1%}"
            for name in tally.scores
            if name not in ("exact", "blanks")
        )
        lines.append(
            f"| {task} | {mode} | {tally.count} | {tally.mean('exact'):.1%} | {others} | "
            f"{tally.steps / max(1, tally.count):.1f} | {tally.tokens / max(1, tally.steps):.1f} |"
        )
    grids = {mode: tally for (task, mode), tally in results.items() if task == "sudoku"}
    if grids:
        heads = " | ".join(f"{a}-{b} blanks" for a, b in BLANK_BINS)
        lines += ["", f"| Sudoku, exact | {heads} |", "|---" * (len(BLANK_BINS) + 1) + "|"]
        for mode, tally in grids.items():
            cells = []
            for key in BLANK_BINS:
                solved, asked = tally.bins.get(key, (0, 0))
                cells.append(f"{solved / asked:.1%} of {asked}" if asked else "-")
            lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)
