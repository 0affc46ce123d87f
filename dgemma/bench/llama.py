"""Reads what llama.cpp's diffusion programs print about their time.

Knows the two forms of their line. Knows nothing about how they are run.
Source: `examples/diffusion` of llama.cpp and of its DiffusionGemma forks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dgemma.errors import EngineError

LINE = re.compile(
    r"total time:\s*(?P<total>[\d.]+)\s*ms,\s*time per step:\s*(?P<step>[\d.]+)\s*ms"
    r"(?:\s*\((?P<steps>\d+) steps over (?P<blocks>\d+) blocks)?"
)


@dataclass(frozen=True, slots=True)
class LlamaTiming:
    """What a run printed.

    Attributes:
        total_ms: of the whole answer, prefill included.
        step_ms: total / steps, as the program itself computes it.
        steps, blocks: None where the line does not say.
    """

    total_ms: float
    step_ms: float
    steps: int | None = None
    blocks: int | None = None


def parse(output: str, program: str) -> LlamaTiming:
    """The last timing line of a program's output.

    Raises:
        EngineError: there is none.
    """
    lines = list(LINE.finditer(output))
    if not lines:
        raise EngineError(
            f"{program} printed no line 'total time: ... ms, time per step: ... ms'; "
            "is it a llama.cpp diffusion program?"
        )
    found = lines[-1]
    steps, blocks = (int(n) if (n := found[key]) else None for key in ("steps", "blocks"))
    return LlamaTiming(float(found["total"]), float(found["step"]), steps, blocks)
