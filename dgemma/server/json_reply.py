"""Replies as JSON: large ones are written beside the event loop, in pieces that give way.

Knows JSON. Knows nothing about any reply.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from starlette.responses import JSONResponse, Response

from dgemma.server.aside import Aside

SMALL_VALUES, SMALL_CHARACTERS = 2000, 200_000
"""A reply within both bounds is written on the event loop."""

FEW, BATCH = 64, 256
"""Members of a list that are written one by one; and those of a longer one that go together: the
encoder holds the interpreter's lock meanwhile."""


async def json_reply(aside: Aside, owner: str, reply: Mapping[str, Any]) -> Response:
    """A reply as JSON.

    Args:
        owner: whose it is; see `Aside.run`.
    """
    if not is_large(reply):
        return JSONResponse(reply)
    return Response(await aside.run(owner, written, reply), media_type="application/json")


def is_large(reply: Any) -> bool:
    """Whether a reply is above `SMALL_VALUES` or `SMALL_CHARACTERS`; looks at no more than that."""
    count = characters = 0
    waiting = [iter([reply])]
    while waiting:
        one = next(waiting[-1], waiting)
        if one is waiting:
            waiting.pop()
            continue
        count += 1
        characters += len(one) if isinstance(one, str) else 0
        if count > SMALL_VALUES or characters > SMALL_CHARACTERS:
            return True
        if isinstance(one, (dict, list, tuple)):
            waiting.append(iter(one.values() if isinstance(one, dict) else one))
    return False


def written(reply: Any) -> bytes:
    """A reply as `JSONResponse` writes it."""
    found = bytearray()
    for part in _parts(reply):
        found += part.encode("utf-8")
    return bytes(found)


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        mark = "{"
        for name, inner in value.items():
            yield f"{mark}{_plain(name)}:"
            yield from _parts(inner)
            mark = ","
        yield "}" if value else "{}"
    elif isinstance(value, (list, tuple)):
        mark, members = "[", iter(value)
        while batch := list(islice(members, 1 if len(value) <= FEW else BATCH)):
            yield mark
            if len(batch) == 1:
                yield from _parts(batch[0])
            else:
                yield _plain(batch)[1:-1]
            mark = ","
        yield "]" if value else "[]"
    else:
        yield _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
