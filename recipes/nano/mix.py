"""The mix of tasks that nano learns from, by the step of the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskMix:
    """The rows of a training step.

    Attributes:
        grids: Sudoku rows whose prompt alone is encoded.
        encoded_grids: Sudoku rows whose answer is encoded too, for the autoregressive mode.
        long: tasks with long prompts, beside `encoded_grids` in one batch.
        short: tasks with short prompts, in a batch of their own.
        written_grids: solved grids to be written without a question.
        written: tasks whose texts are to be written without a question.
        written_canvases: noisy canvases of each such text; None: as many as of all others.
    """

    grids: int
    encoded_grids: int
    long: tuple[str, ...]
    short: tuple[str, ...]
    written_grids: int = 0
    written: tuple[str, ...] = ()
    written_canvases: int | None = None


_FIRST = TaskMix(22, 2, ("tools",), ("json", "json", "json", "thought", "gaps", "labels", "chat"))
_SECOND = TaskMix(
    10, 2, ("tools", "tools"),
    ("json",) * 13 + ("thought", "gaps", "gaps", "labels", "chat"),
)  # fmt: skip


def _later(grids: int, json: int, written_grids: int, gaps: int, canvases: int | None) -> TaskMix:
    """A mix in which texts are also written without a question."""
    short = ("json",) * json + ("thought", "gaps", "labels", "chat")
    return TaskMix(grids, 1, ("tools",), short, written_grids, ("gaps",) * gaps, canvases)


MIXES = (
    (0, _FIRST),
    (1750, _SECOND),
    (5050, _later(8, json=6, written_grids=8, gaps=6, canvases=None)),
    (6050, _later(6, json=4, written_grids=8, gaps=16, canvases=None)),
    (6800, _later(6, json=12, written_grids=4, gaps=4, canvases=None)),
    (7200, _later(6, json=8, written_grids=24, gaps=6, canvases=None)),
    (10_000, _later(4, json=6, written_grids=48, gaps=8, canvases=2)),
)
"""(first step, mix). Sudoku comes first. Copying names into JSON takes longer and comes later.
Writing without a question, for text that is pinned on the canvas, comes last."""


def mix_at(step: int) -> TaskMix:
    """The mix of a step."""
    return next(mix for start, mix in reversed(MIXES) if step >= start)
