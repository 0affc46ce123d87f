"""Refuses requests that pass a limit of this server.

Knows the limits' errors. Knows nothing about which request has which limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dgemma.params import RELEASED, bounds, most_tries
from dgemma.server.errors import Refusal
from dgemma.server.settings import ServerLimits


def check_limit(name: str, value: int | None, most: int | None) -> None:
    """Refuse a number of a field that is above the server's own; None: nothing is asked, or bound.

    Raises:
        Refusal: 400.
    """
    if value is not None and most is not None and value > most:
        raise limited(name, f"{name} {value} is above this server's {most}; ask for less")


def check_restarts(
    after: int | str | None, tries: int | None, careful: bool, steps: int | None,
    limits: ServerLimits,
) -> None:  # fmt: skip
    """Refuse a canvas whose tries together may take more steps than the limit allows.

    Args:
        after: steps of a try, if the request gives a number.
        careful: a try that converges may be followed by another, too.
        steps: most steps of a canvas, if the request gives them.

    Raises:
        Refusal: 400.
    """
    name = "restart_after" if after else "quality" if careful else "tries"
    most = limits.max_steps or bounds("max_steps")[1]
    once = (steps or RELEASED.max_steps or 0) if careful else 1
    once = after if isinstance(after, int) and after else once
    steps = once * most_tries(tries, after, steps, careful)
    if (after or tries or careful) and most is not None and steps > most:
        raise limited(
            name, f"{name} lets a canvas take {steps} steps in all its tries, more than this "
            f"server's {most}; ask for fewer steps or tries",
        )  # fmt: skip


def check_rows(name: str, answers: int, race: int, most: int) -> None:
    """Refuse answers whose canvases, those that race beside another counted, pass the limit.

    Args:
        name: the field that asks for so many answers.

    Raises:
        Refusal: 400.
    """
    check_limit(name, answers, most)
    if answers * race > most:
        raise limited(
            name, f"{name} {answers} with a race of {race} is {answers * race} canvases side by "
            f"side, more than this server's {most} of one request; ask for less of either",
        )  # fmt: skip


def check_schema(value: Any, name: str, limits: ServerLimits) -> None:
    """Refuse a schema (or grammar, or tools) that is too large or too deep.

    Raises:
        Refusal: 400.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    most = limits.schema_bytes
    if len(text) > most:
        raise limited(
            name, f"{name} has {len(text)} characters, more than this server's {most}; shorten it"
        )
    if not isinstance(value, str) and depth_of(value) > limits.schema_depth:
        raise limited(
            name, f"{name} is nested deeper than this server's {limits.schema_depth} levels"
        )


def check_messages(messages: Sequence[Any], limits: ServerLimits) -> None:
    """Refuse a conversation of too many messages.

    Raises:
        Refusal: 400.
    """
    most = limits.messages
    if len(messages) > most:
        raise limited(
            "messages", f"messages has {len(messages)} members, more than this server's {most}; "
            "send fewer, or the older ones as one text",
        )  # fmt: skip


def limited(name: str, message: str) -> Refusal:
    """The error of a field that passes a limit."""
    return Refusal(400, message, param=name, code="limit")


def walk(value: Any) -> Iterator[tuple[Any, int]]:
    """All values in a JSON value, and the names of fields, with their depth; without recursion.

    The value itself has depth 1, a name that of its object.
    """
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        yield one, depth
        if isinstance(one, dict):
            waiting += [(name, depth) for name in one]
            waiting += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            waiting += [(inner, depth + 1) for inner in one]


def depth_of(value: Any) -> int:
    """Levels of objects and lists in a JSON value."""
    return max((depth for one, depth in walk(value) if isinstance(one, (dict, list))), default=0)
