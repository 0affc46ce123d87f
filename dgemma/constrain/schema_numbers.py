"""Numbers of schemas: which of them the grammar library holds exactly, and how it must be told.

It reads a number as significand times power of ten in floating point, and writes it without an
exponent. That is exact while both are exact; elsewhere it may write a neighbour, and at -2^63 it
takes the process with it. Knows nothing about places and keywords.
Source: `serde_json` without `float_roundtrip`; W. Clinger, "How to read floating point numbers".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

LARGEST = 1 << 53
"""Whole numbers beyond this are not all exact as floating-point numbers."""
FINEST = 22
"""The largest power of ten that is exact as a floating-point number."""


def is_number(value: Any) -> bool:
    """A number of JSON; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def scientific(value: int | float) -> tuple[int, int]:
    """Significand, without zeros at its end, and exponent of ten of a number as it is written."""
    sign, digits, exponent = Decimal(str(value)).as_tuple()
    assert isinstance(exponent, int), "finite"
    text = "".join(map(str, digits))
    short = text.rstrip("0")
    if not short:
        return 0, 0
    return (-1 if sign else 1) * int(short), exponent + len(text) - len(short)


def is_exact(value: int | float) -> bool:
    """Whether the library reads and writes a number without rounding."""
    if isinstance(value, int) and abs(value) <= LARGEST:
        return True
    significand, exponent = scientific(value)
    return abs(significand) <= LARGEST and abs(exponent) <= FINEST


def told(value: Any) -> Any:
    """A value whose numbers are exact, in the form in which the library reads them as such."""
    if is_number(value):
        whole = float(value).is_integer()
        return int(value) if whole and abs(value) <= LARGEST else float(value)
    if isinstance(value, Mapping):
        return {key: told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [told(part) for part in value]
    return value


def inexact(value: Any) -> Iterator[int | float]:
    """The numbers in a JSON value that the library would write otherwise."""
    if is_number(value):
        if not is_exact(value):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from inexact(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from inexact(part)


def states(steps: list[int | float]) -> int:
    """How many states a reader of multiples of all these steps has; 1 for powers of ten to 10^6."""
    parts = [scientific(step) for step in steps]
    finest = min(exponent for _, exponent in parts)
    found = math.lcm(*(number * 10 ** (exponent - finest) for number, exponent in parts))
    number, zeros = scientific(found)
    if number == 1 and zeros + finest <= 6:
        return 1
    return int(found * 10 ** max(finest, 0))


def form(value: Any) -> str:
    """A value in one form: 1.0 is 1."""
    return json.dumps(told(value), sort_keys=True)
