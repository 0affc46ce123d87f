"""A compile process with a bad library: `python -m` this module. Some regular expressions crash
it, never come back or take all memory; all else is compiled as usual."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from dgemma.constrain import compile_process

ABORT, ENDLESS, BOMB, PANIC, FAULT = "abort", "endless", "bomb", "panic", "fault"


class Panic(BaseException):
    """As a library in Rust raises it."""


def make(options: dict[str, Any]) -> compile_process.Answer:
    """The usual one with the faults before it."""
    usual = compile_process.make(options)

    def answer(kind: str, value: Any) -> dict[str, Any]:
        if value == ABORT:
            os.abort()
        if value == ENDLESS:
            re.match("(a+)+$", "a" * 64 + "b")  # holds the interpreter lock
        if value == BOMB:
            kept = []
            while True:
                kept.append(bytearray(1 << 24))
        if value == PANIC:
            raise Panic
        if value == FAULT:
            raise KeyError(value)
        return usual(kind, value)

    return answer


if __name__ == "__main__":
    if "no start" in sys.argv[1]:
        sys.exit(3)
    compile_process.run(make)
