"""What the operations of a chat template cost, and the budget that pays for them.

Each pass of a loop, each call, and each character or item that is read or made costs some of the
budget, and is paid before the work is done. Values that a template makes may share parts, so that
a small one is endless when it is written out: what walks through a value pays for the walk. An
operation that is not listed here has no known cost, and is not let through.
Knows what the filters and methods do. Knows nothing about syntax trees or conversations.
Source: `jinja2.filters`; the methods of Python's own types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import jinja2

WORK = 1 << 29
"""Units of one rendering; a conversation of a million tokens needs about a tenth."""
PASS, ITEM, PLACE = 256, 64, 8
"""Units of a pass of a loop, of an item that is looked at, and of an item that is only copied."""
FILTER, MACRO = 512, 2048
"""Units of a call beside its work: of a filter or test, of a macro or block. A method: `PASS`."""
MOST_CHARACTERS = 1 << 24
"""Of one text."""
MOST_BITS = 4096
"""Of an integer."""
MOST_WIDTH = 10_000
"""Of a number that says how wide a text is to be."""
_SIZED = (str, list, tuple, dict, set, frozenset)


T = TypeVar("T")


class TooMuchWork(jinja2.TemplateError):
    """The budget is spent."""


class _Budget:
    """What is left of it."""

    def __init__(self) -> None:
        self.left = WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuchWork("it does more work than a chat template may")


_budget: ContextVar[_Budget] = ContextVar("budget")


def spend(units: int) -> None:
    """Pay for work that is about to be done."""
    _budget.get().spend(units)


def limited(work: Callable[[], T]) -> T:
    """Do something with a budget of its own."""
    token = _budget.set(_Budget())
    try:
        return work()
    finally:
        _budget.reset(token)


def weigh(value: Any) -> Any:
    """Pay for a walk through a value; returns it."""
    if isinstance(value, str):
        spend(len(value) + 1)
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        budget, waiting = _budget.get(), [value]
        while waiting:
            part = waiting.pop()
            if isinstance(part, str):
                budget.spend(len(part) + ITEM)
            elif isinstance(part, dict):
                budget.spend(ITEM * (2 * len(part) + 1))
                waiting += part.keys()
                waiting += part.values()
            elif isinstance(part, (list, tuple, set, frozenset)):
                budget.spend(ITEM * (len(part) + 1))
                waiting += part
    return value


def made(value: Any) -> Any:
    """Pay for a new value, not for its parts; returns it."""
    if isinstance(value, str):
        written(len(value), value.isascii())
    elif isinstance(value, _SIZED):
        spend(ITEM * len(value))
    elif isinstance(value, Iterator):
        return _counted(value)
    return value


def written(characters: int, ascii_only: bool = True) -> None:
    """Pay for a text that is about to be made."""
    if characters > MOST_CHARACTERS:
        raise TooMuchWork(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
    spend(characters if ascii_only else 4 * characters)


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        spend(ITEM)
        yield value


def _places(value: Any) -> None:
    """Pay for a value whose items are not looked into."""
    if isinstance(value, _SIZED):
        spend(PLACE * len(value))


def _width(value: Any) -> None:
    if isinstance(value, int) and abs(value) > MOST_WIDTH:
        raise TooMuchWork(f"it asks for a width of more than {MOST_WIDTH:,}")


# -- operators, filters, methods whose result is larger than what goes in ------------------------


def operate(operator: str, left: Any, right: Any) -> None:
    """Pay for a binary operator."""
    if isinstance(left, str) and operator == "%":
        _format_cost(left, right, "%")
    elif operator == "*" and isinstance(left, int) and not isinstance(right, (int, float)):
        operate(operator, right, left)
    elif isinstance(left, _SIZED):
        times = max(right, 0) if operator == "*" and isinstance(right, int) else 1
        more = len(right) if isinstance(right, _SIZED) else 0
        size = len(left) * times + more
        written(size) if isinstance(left, str) else spend(PLACE * size)
        spend(0 if not isinstance(left, str) or left.isascii() else 3 * size)
    elif isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        one, other = left.bit_length(), right.bit_length()
        if (one + other if operator == "*" else one * min(abs(right), MOST_BITS)) > MOST_BITS:
            raise TooMuchWork(f"it makes a number of more than {MOST_BITS} bits")


def _format_cost(text: str, values: Any, sign: str) -> None:
    """Pay for `text % values` or `text.format(values)`: each field may hold all of them."""
    plain = text.replace(sign * 2, "")
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", plain)]
    computed = "*" in plain if sign == "%" else re.search(r"\{[^{}]*\{", plain)
    if computed or max(widths, default=0) > MOST_WIDTH:
        raise TooMuchWork(f"it asks for a width that is computed, or more than {MOST_WIDTH:,}")
    before = _budget.get().left
    weigh(values)
    each = before - _budget.get().left + max(widths, default=0)
    spend(len(text) + plain.count(sign) * each)


def _replace(value: Any, old: Any, new: Any, *rest: Any, **options: Any) -> None:
    text, found, put = str(weigh(value)), str(weigh(old)), str(weigh(new))
    times = text.count(found)
    written(len(text) + times * len(put), text.isascii() and put.isascii())


def _join(value: Any, separator: Any = "", *rest: Any, **options: Any) -> None:
    spend(len(value) * len(str(weigh(separator))) if isinstance(value, _SIZED) else 0)
    weigh(value)


def _filter_join(value: Any, d: Any = "", *rest: Any, **options: Any) -> Any:
    items = list(value)
    _join(items, d)
    return items


def _indent(value: Any, width: Any = 4, *rest: Any, **options: Any) -> None:
    _width(width)
    size = width if isinstance(width, int) else len(str(weigh(width)))
    text = str(weigh(value))
    written(len(text) + (text.count("\n") + 1) * size)


def _round(value: Any, precision: Any = 0, *rest: Any, **options: Any) -> None:
    if not isinstance(precision, int) or abs(precision) > 300:
        raise TooMuchWork("it rounds to more than 300 places")


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> None:
    weigh(value)
    if not isinstance(start, (int, float)):
        raise TooMuchWork("it sums something else than numbers")


def deep(*values: Any, **options: Any) -> None:
    for value in (*values, *options.values()):
        weigh(value)


def _wide(value: Any, *rest: Any, **options: Any) -> None:
    deep(value, *rest, **options)
    for number in (*rest, *options.values()):
        _width(number)


def shallow(*values: Any, **options: Any) -> None:
    for value in (*values, *options.values()):
        _places(value)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """JSON without Jinja's escapes for HTML."""
    weigh(value)
    if separators is not None and sum(map(len, separators)) > 16:
        raise TooMuchWork("it separates JSON by more than 16 characters")
    if indent is not None:
        _width(indent)
        size = indent if isinstance(indent, int) else len(indent)
        waiting = [(value, 1)]
        while waiting:  # every item begins a line
            part, depth = waiting.pop()
            inner = part.values() if isinstance(part, dict) else part
            if isinstance(part, (dict, list, tuple)):
                written(len(part) * depth * size)
                waiting += [(item, depth + 1) for item in inner]
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


FILTER_COSTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((
        "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map",
        "reject", "rejectattr", "reverse", "safe", "select", "selectattr", "slice",
    ), shallow),
    **dict.fromkeys((
        "abs", "capitalize", "dictsort", "e", "escape", "float", "groupby", "int", "lower", "max",
        "min", "sort", "string", "title", "tojson", "trim", "unique", "upper", "urlencode",
    ), deep),
    "center": _wide, "truncate": _wide, "indent": _indent, "join": _filter_join,
    "replace": _replace, "round": _round, "sum": _sum,
    "format": lambda value, *args, **named: _format_cost(str(value), (args, named), "%"),
}  # fmt: skip
"""Filter -> what it costs; others are not there."""
ITERATED_COSTS = {"batch": _wide, "slice": _wide}
DEEP_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le",
    "lessthan", "lower", "lt", "ne", "upper",
)  # fmt: skip
METHOD_COSTS: Mapping[type, Mapping[str, Callable[..., Any]]] = {
    str: {
        **dict.fromkeys((
            "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
            "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
            "isprintable", "isspace", "istitle", "isupper", "lower", "lstrip", "partition",
            "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
            "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
        ), deep),
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _wide),
        "replace": _replace,
        "join": lambda text, values, *rest: _join(values, text),
        "format": lambda text, *args, **named: _format_cost(text, (args, named), "{"),
    },
    dict: dict.fromkeys(("copy", "get", "items", "keys", "values"), shallow),
    list: dict.fromkeys(("copy", "count", "index"), deep),
    tuple: dict.fromkeys(("count", "index"), deep),
}  # fmt: skip
"""Type -> its methods that a template may call, and what each costs."""
