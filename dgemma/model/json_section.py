"""One JSON object being read key by key, so that no key is ever ignored in silence.

Knows types and the words of an error. Knows no key by itself, and nothing about files.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dgemma.errors import ConfigError, nearest

logger = logging.getLogger("dgemma")
MOST = 2**31 - 1
"""Of any size; the sizes of real models are far below."""
MOST_WHOLE = 2**53
"""Of an integer that stands for a number with a fraction."""
MOST_SHOWN = 200
"""Characters of a value in a message."""
T = TypeVar("T")
N = TypeVar("N", int, float)


def shown(value: object) -> str:
    """A value of a file in a message, on one line and not without end."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


class Section:
    """One JSON object being read: keys are taken out by name and type; the rest is unknown."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} must be a JSON object, got {type(values).__name__}")
        self.where = where
        self.left = dict(values)
        self.known: set[str] = set()

    def take(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """The value, `default` when it is null or missing."""
        self.known.add(key)
        value = self.left.pop(key, None)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) <= MOST_WHOLE else math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(
                f"{self.where}: {key} must be of type {kind.__name__}, got {shown(value)}; "
                "correct it"
            )
        return value

    def size(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """An integer of at least 1; it must be there unless it has a default."""
        value = self._at_least(key, self.take(key, int, default), 1)
        if value > most:
            raise ConfigError(
                f"{self.where}: {key} must be at most {most:,}, got {shown(value)}; correct it"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0; it must be there unless it has a default."""
        return self._at_least(key, self.take(key, float, default), 5e-324)

    def _at_least(self, key: str, value: N | None, least: N) -> N:
        if value is None:
            raise ConfigError(f"{self.where}: {key} is missing; the file is not a complete config")
        if not least <= value < math.inf:
            raise ConfigError(
                f"{self.where}: {key} must be positive, got {shown(value)}; correct it"
            )
        return value

    def fixed(self, table: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Take the keys of `table`; a value that it does not list is an error."""
        found = {}
        for key, allowed in table.items():
            self.known.add(key)
            value = self.left.pop(key, None)
            if value is None:
                continue
            if value not in allowed:
                raise ConfigError(
                    f"{self.where}: {key} = {shown(value)} is not supported; this network "
                    f"can only honour {' or '.join(map(repr, allowed))}"
                )
            found[key] = value
        return found

    def close(self, neutral: Iterable[str], *, strict: bool) -> None:
        """Deal with the keys that were not taken: neutral ones are listed, others unknown."""
        neutral = set(neutral)
        for key, value in self.left.items():
            if value is None or key in neutral:
                continue
            problem = f"{self.where}: unknown key {shown(key)}{nearest(key, self.known | neutral)}"
            if strict:
                raise ConfigError(f"{problem}; to ignore it, pass strict=False")
            logger.warning("%s; it is ignored", problem)

    def ids(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Token ids given as one integer, a list, null (none at all) or not at all (`default`)."""
        self.known.add(key)
        value = self.left.pop(key, default)
        ids = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
        for i in ids:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i <= MOST:
                raise ConfigError(f"{self.where}: {key} must hold token ids, got {shown(value)}")
        return tuple(ids)
