"""A render process with a bad library: `python -m` this module. Some texts never come back, crash
it or take all memory; all else is rendered as usual."""

from __future__ import annotations

import os
from typing import Any

from dgemma.constrain import compile_process
from dgemma.server import render_process

ENDLESS, ABORT, BOMB = "endless", "abort", "bomb"


def make(options: dict[str, Any]) -> compile_process.Answer:
    """The usual one with the faults before it."""
    usual = render_process.make(options)

    def answer(kind: str, value: Any) -> dict[str, Any]:
        while value == ENDLESS:
            pass
        if value == ABORT:
            os.abort()
        kept = []
        while value == BOMB:
            kept.append(bytearray(1 << 24))
        return usual(kind, value)

    return answer


if __name__ == "__main__":
    compile_process.run(make)
