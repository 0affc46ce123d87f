"""A body of JSON: how many values it has, told before it is read, and its value, read once.

Knows JSON and the limits. Knows nothing about fields or routes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from dgemma.server.errors import Refusal
from dgemma.server.limits import walk
from dgemma.server.settings import ServerLimits
from dgemma.text.tokenizer import SURROGATE

SMALL_BYTES, SMALL_VALUES = 64 * 1024, 4000
"""A body within both bounds is read on the event loop; a larger one beside it."""

_MARKS = b"[{,:"
_IS_MARK = np.isin(np.arange(256), list(_MARKS))
_QUOTE = ord('"')
_CHUNK = 1 << 16
"""Bytes whose marks are counted at a time."""


@dataclass(slots=True)
class ParsedBody:
    """A body that has been read.

    Attributes:
        value: as it was sent.
        large: it is above `SMALL_BYTES` or `SMALL_VALUES`.
        checked: the same as the schema of its route; None: it has not been checked.
    """

    value: Any
    large: bool
    checked: Any = None


def is_large(body: bytes | bytearray) -> bool:
    """Whether a body is read beside the event loop."""
    return len(body) > SMALL_BYTES or _marks(body) > SMALL_VALUES


def parse_json(body: bytes | bytearray, limits: ServerLimits) -> Any:
    """The value of a body. Large ones are read in a thread, in steps that give way to others.

    Raises:
        Refusal: 400, it is not JSON (though Python's own reader may take it), or it has too many
            values or levels; the message has the reason.
    """
    check_values(body, limits.json_values)
    depth = limits.json_depth
    too_deep = _broken(f"is nested deeper than this server's {depth} levels")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_not_a_number,
                           parse_float=_finite, object_pairs_hook=_once)  # fmt: skip
    except UnicodeDecodeError as error:
        raise _broken(f"is not UTF-8 (byte {error.start}); send valid UTF-8") from error
    except RecursionError as error:
        raise too_deep from error
    except json.JSONDecodeError as error:
        raise _broken(f"is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _broken("holds too long a number") from error
    escaped = b"\\" in body and b"\\u" in body  # else UTF-8 has no surrogate
    if not escaped and _opened(body) <= depth:
        return value
    for one, level in walk(value):
        if escaped and isinstance(one, str) and not one.isascii() and SURROGATE.search(one):
            raise _broken("holds a lone surrogate, which is not text; send valid Unicode")
        if level > depth + 1:
            raise too_deep
    return value


def check_values(body: bytes | bytearray, most: int) -> None:
    """Refuse a body of too many values and names, without reading it.

    Each of them but the first follows a mark (one of `[{,:`) outside of strings, so there are no
    more than marks. Empty lists and objects count twice.

    Raises:
        Refusal: 400.
    """
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    values, quotes, found = np.frombuffer(text, np.uint8), 0, 1
    for low in range(0, len(values), _CHUNK):  # numpy lets other threads run meanwhile
        part = values[low : low + _CHUNK]
        before = np.cumsum(part == _QUOTE, dtype=np.uint32) + quotes
        found += int(np.count_nonzero(_IS_MARK[part] > (before & 1)))
        quotes = int(before[-1]) & 1
        if found > most:
            why = f"has more than this server's {most} values and names; send less"
            raise Refusal(400, f"the body {why}", code="limit")


def _marks(text: bytes | bytearray) -> int:
    return sum(map(text.count, _MARKS))


def _opened(body: bytes | bytearray) -> int:
    """Brackets that open, those in strings too; numpy lets other threads run meanwhile."""
    values = np.frombuffer(body, np.uint8)
    return int(np.count_nonzero(values == ord("["))) + int(np.count_nonzero(values == ord("{")))


def _broken(why: str) -> Refusal:
    return Refusal(400, f"the body {why}", code="invalid_json")


def _not_a_number(text: str) -> NoReturn:
    raise _broken(f"holds {text}, which is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_a_number(text[:40])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _broken(f"has the field {twice!a} twice in one object; give it once")
    return found
