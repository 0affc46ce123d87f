"""Random draws that are a pure function of a key, and the hash that parts the splits.

Knows SplitMix64 and BLAKE2b, so the numbers are the same on every machine and Python version.
Knows nothing about any task, and keeps no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, TypeVar

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
HELDOUT_PART = 8
"""One of this many hash values belongs to the held-out split."""

T = TypeVar("T")
_MASK = 2**64 - 1


def hash64(*key: object) -> int:
    """64 bits of BLAKE2b of the key's parts (ints and strings; their types count)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def split_of(kind: str, value: object) -> Split:
    """The one split in which `value` of this kind may occur."""
    return "heldout" if hash64("split", kind, str(value)) % HELDOUT_PART == 0 else "train"


class Draw:
    """A stream of random numbers that its key alone determines (SplitMix64)."""

    __slots__ = ("_state",)

    def __init__(self, *key: object) -> None:
        self._state = hash64(*key)

    def bits(self) -> int:
        """The next 64 random bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return self.bits() * count >> 64

    def between(self, least: int, most: int) -> int:
        """An integer in [least, most], both ends possible."""
        return least + self.below(most - least + 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, all equally likely."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` of `options`, none twice, in random order."""
        pool = list(options)
        for k in range(count):
            other = k + self.below(len(pool) - k)
            pool[k], pool[other] = pool[other], pool[k]
        return pool[:count]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of `options` in random order."""
        return self.sample(options, len(options))
