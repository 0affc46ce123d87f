"""Bodies with random faults, made from valid ones of every route. One number, one body."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from tests.support.bodies import ALL

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64, 10**400, 0.0, -0.5, 1e308,
    1e-320, "", "a", " ", "\x00", "\ufeff", "\u202e", "<|turn>", "<|tool_call>", "<turn|>",
    "9" * 5_000, "a" * 10_000, "[" * 3_000, "(a+)+$", "../../etc/passwd", "\x1b[2J",
    [], {}, [[]], [None], [1] * 3_000, ["a"] * 3_000, {"": ""}, {"type": "object"},
    {"$ref": "#"}, {"type": ["string", "string"]},
    [{"role": "user"}], [{"role": "x", "content": 1}],
)  # fmt: skip
"""Values that stand where others belong."""

ROUTES = sorted(ALL)


def mutated_body(number: int) -> tuple[str, bytes]:
    """The path and the body of a request, the same for the same number."""
    draw = random.Random(number)
    path = draw.choice(ROUTES)
    body = deepcopy(ALL[path])
    for _ in range(draw.choice((1, 1, 2, 3))):
        _spoil(body, draw)
    data = json.dumps(body).encode()
    if draw.random() < 0.15:
        data = _torn(data, draw)
    return path, data


def _spoil(body: Any, draw: random.Random) -> None:
    """One fault at a random place of a JSON value."""
    places = [(body, key) for key in _keys(body)]
    for holder, key in places:
        places += [(holder[key], inner) for inner in _keys(holder[key])]
    if not places:
        return
    holder, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind < 3:
        holder[key] = deepcopy(draw.choice(HOSTILE))
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other, place = draw.choice(places)
        holder[key] = deepcopy(other[place]) if place in _keys(other) else None
    elif isinstance(holder, dict):
        holder[draw.choice(("x", "", "n", "stream", "tools", "seed", "$ref", "\x00"))] = deepcopy(
            draw.choice(HOSTILE)
        )
    else:
        holder += deepcopy(holder) * draw.choice((1, 50))


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _torn(data: bytes, draw: random.Random) -> bytes:
    """A body that is cut, doubled, or has other bytes in it."""
    at = draw.randrange(len(data))
    return draw.choice(
        (
            data[:at],
            data + data,
            data[:at] + draw.randbytes(4) + data[at:],
            data.replace(b'"', b"'"),
            b"[" * 5_000 + data,
        )
    )
