"""The pages of one sequence, block by block, and what the keys and values of a block depend on.

Plain values. It must not know tensors (no torch), or which pages are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dgemma.request_parts import PromptContent
from dgemma.types import PAGE


class BlockKey(NamedTuple):
    """What the keys and values of a block depend on, beside the blocks before it.

    Attributes:
        ids: its tokens.
        owner: whose they are; others may not use them. "": everyone's.
        contents: those that some of its ids stand for, wherever they begin and end.
    """

    ids: tuple[int, ...]
    owner: str = ""
    contents: tuple[PromptContent, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefix:
    """The context of a sequence, for a look into the tree.

    Attributes:
        ids: all tokens to encode; the list may grow.
        owner, contents: of the request.
        common: how many of the first tokens are no owner's, but everyone's.
    """

    ids: Sequence[int]
    owner: str = ""
    contents: tuple[PromptContent, ...] = ()
    common: int = 0

    def key(self, number: int) -> BlockKey | None:
        """The key of a block; None if it is not complete."""
        low, high = number * PAGE, (number + 1) * PAGE
        if len(self.ids) < high:
            return None
        inside = (c for c in self.contents if c.start < high and c.start + c.length > low)
        owner = "" if high <= self.common else self.owner
        return BlockKey(tuple(self.ids[low:high]), owner, tuple(inside))


Place = tuple[int, BlockKey]
"""A block that is not in the tree yet: the identity of its parent, its own key."""


@dataclass(slots=True, eq=False)
class PrefixNode:
    """A complete block that any sequence with the same beginning may use.

    Attributes:
        key: its tokens, and what else it depends on.
        parent: the block before it; None: this is the root.
        full, sliding: its pages; `sliding` may be NONE.
        users: tables that have the block.
        viewers: those of them that still need its sliding page.
        children: the blocks after it.
    """

    key: BlockKey
    parent: PrefixNode | None
    full: int
    sliding: int
    users: int = 0
    viewers: int = 0
    children: dict[BlockKey, PrefixNode] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Fork:
    """The pages of one canvas that races beside another, from the first block that it writes to.

    Attributes:
        first: number of that block; those before it are the sequence's.
        full, sliding: the pages, one each a block.
        copied: how many tokens there are before the canvas, if the last of them, which share its
            first block, are in its first pages.
    """

    first: int
    full: list[int]
    sliding: list[int]
    copied: int = 0


@dataclass(slots=True, eq=False)
class BlockTable:
    """The pages of one sequence, one entry a block.

    Attributes:
        full, sliding: page numbers; `sliding` is NONE if the window has passed the block.
        shared: the leading blocks, which are in the tree.
        ids: the tokens whose keys and values are in the pages.
        passed: how many leading blocks the window has passed.
        prefix: all tokens to encode.
        pending: place in the tree of the block that is completed next, see `Pages.computing`.
        forks: of the canvases of a race, but for the first.
    """

    full: list[int] = field(default_factory=list)
    sliding: list[int] = field(default_factory=list)
    shared: list[PrefixNode] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    passed: int = 0
    prefix: Prefix = Prefix(())
    pending: Place | None = None
    forks: list[Fork] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Pages of the full layers, those of forks too."""
        return len(self.full) + sum(len(fork.full) for fork in self.forks)

    def row(self, number: int) -> tuple[list[int], list[int]]:
        """The full and the sliding page of each block of a canvas of the race, from 0."""
        if number == 0:
            return self.full, self.sliding
        fork = self.forks[number - 1]
        return self.full[: fork.first] + fork.full, self.sliding[: fork.first] + fork.sliding


def blocks(length: int, room: int, rows: int) -> int:
    """Blocks of `room` positions, of which `rows` canvases share the complete ones of `length`."""
    end = -(-room // PAGE)
    return end + (rows - 1) * (end - length // PAGE)
