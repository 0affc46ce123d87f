"""Tensors that a quantiser wrote apart (codes, scales, zeros), seen as the one that they mean.

A scheme (`weights/schemes/`) reads a checkpoint's `quantization_config` and says which tensors
belong together. Every tensor of the files is then in one group, plain, or set aside by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dgemma.errors import CheckpointError
from dgemma.quant.packed import Format, Packed
from dgemma.weights.source import StoredTensor, TensorSource, few

Read = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Group:
    """One packed tensor.

    Attributes:
        format: how it is packed.
        shape: of its numbers, [..., R, K].
        stored: the tensors of the files that it is made of.
        build: makes it; its argument reads a tensor of `stored` by its name.
    """

    format: Format
    shape: tuple[int, ...]
    stored: tuple[str, ...]
    build: Callable[[Read], Packed]


Scheme = Callable[[Mapping[str, Any], Mapping[str, StoredTensor], Read], Mapping[str, Group]]
"""From a quantization config and the stored tensors to the groups, by the plain tensor's name. The
last argument reads a tensor, for the few bytes that say what the headers do not.

A scheme raises `CheckpointError` for what it does not know, a scale that is missing, or one that
stands beside a weight without a meaning: nothing is dropped."""


class PackedSource:
    """A source whose groups are seen as tensors; see `TensorSource`."""

    def __init__(
        self, inner: TensorSource, groups: Mapping[str, Group], aside: frozenset[str] = frozenset()
    ) -> None:
        """
        Args:
            aside: stored tensors that mean nothing to this engine, such as scales of a cache.

        Raises:
            CheckpointError: a tensor that belongs to two groups.
        """
        self.inner, self.groups, self.path = inner, groups, inner.path
        taken = Counter(name for group in groups.values() for name in group.stored)
        if twice := sorted(name for name, count in taken.items() if count > 1):
            raise CheckpointError(f"{inner.path}: {few(twice)} belong to two weights each")
        held = {n: t for n, t in inner.tensors.items() if n not in taken and n not in aside}
        for name, group in groups.items():
            size = sum(inner.tensors[part].nbytes for part in group.stored)
            word = group.format.name
            held[name] = StoredTensor(word, group.shape, size, format=group.format)
        self._tensors = held

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """See `TensorSource`."""
        return self._tensors

    def read(self, name: str, *, keep: bool = True) -> Tensor:
        """See `TensorSource`."""
        return self.inner.read(name, keep=keep)

    def packed(self, name: str, *, keep: bool = True) -> Packed:
        """See `TensorSource`."""
        return self.groups[name].build(lambda part: self.inner.read(part, keep=keep))

    def close(self) -> None:
        """See `TensorSource`."""
        self.inner.close()
