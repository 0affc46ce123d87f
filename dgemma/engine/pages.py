"""Which pages of the key-value memory belong to whom: allocate, share, evict.

A block is `PAGE` consecutive tokens of a request. Each block has one page in the group of the full
layers, which keep every token, and, while a later token can still see it, one in the group of the
sliding layers. A block that is complete is put into a tree under its ids and those before it, so
that any request with the same beginning uses the same pages; the ids themselves are compared, not
a hash of them. When nobody uses a block its pages stay until they are needed for something else,
the least recently used first.

Knows page numbers and token ids. Knows nothing about tensors (no torch), about what runs next, or
about why a request asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dgemma.engine.page_allocator import NONE, PageAllocator
from dgemma.types import PAGE


@dataclass(slots=True, eq=False)
class PrefixNode:
    """A complete block that any request with the same beginning may use.

    Attributes:
        ids: its tokens.
        parent: the block before it; None: the first of a request.
        full, sliding: its pages; `sliding` may be NONE.
        users: tables that have the block.
        viewers: those of them that still need its sliding page.
        children: the blocks that follow it, by their ids.
    """

    ids: tuple[int, ...]
    parent: PrefixNode | None
    full: int
    sliding: int
    users: int = 0
    viewers: int = 0
    children: dict[tuple[int, ...], PrefixNode] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class BlockTable:
    """The pages of one request, one entry a block.

    Attributes:
        full, sliding: page numbers; `sliding` is NONE where the window has passed.
        shared: the leading blocks, which stand in the tree.
        ids: the tokens whose keys and values are in the pages.
        passed: how many leading blocks the window has passed.
        pending: where the block stands that this request will complete next, see `Pages.computing`.
    """

    full: list[int] = field(default_factory=list)
    sliding: list[int] = field(default_factory=list)
    shared: list[PrefixNode] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    passed: int = 0
    prompt: Sequence[int] = ()
    pending: tuple[int, tuple[int, ...]] | None = None


class Pages:
    """All pages of both groups."""

    def __init__(self, full: int, sliding: int, window: int) -> None:
        """
        Args:
            full, sliding: pages of each group.
            window: a token of a sliding layer sees itself and `window - 1` before it.
        """
        self.full = PageAllocator(full)
        self.sliding = PageAllocator(sliding)
        self.reach = window - 1
        self.tables: set[BlockTable] = set()
        self.hit_tokens = 0
        self.evicted = 0
        self._root = PrefixNode((), None, NONE, NONE)
        self._idle: OrderedDict[PrefixNode, None] = OrderedDict()  # no users; children stand first
        self._unseen: OrderedDict[PrefixNode, None] = OrderedDict()  # a sliding page, no viewers
        self._pending: dict[tuple[int, tuple[int, ...]], BlockTable] = {}

    # -- what there is -------------------------------------------------------------------------

    @property
    def cached(self) -> int:
        """Blocks that are kept though nobody uses them."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """Full pages that could be had now."""
        return self.full.free + len(self._idle)

    def could(
        self, ids: Sequence[int], room: int, first: int, without: Iterable[BlockTable]
    ) -> bool:
        """Whether `open` might succeed if other tables were closed: False is certain."""
        found = len(self._find(ids))
        full, sliding = self.available, self.sliding.free + len(self._unseen)
        for table in without:
            full += len(table.full)
            sliding += sum(page != NONE for page in table.sliding)
        end = min(room, found * PAGE + first)
        return full >= -(-room // PAGE) - found and sliding >= -(-end // PAGE) - found

    @property
    def capacity(self) -> int:
        """Most tokens of one request."""
        return self.full.count * PAGE

    def _find(self, ids: Sequence[int]) -> list[PrefixNode]:
        """The blocks of the tree that `ids` begin with and that a request may start behind.

        At least one token is left over, so that a request always has something to encode. Behind
        the last block all sliding pages in reach of the window must be there.
        """
        node, found, usable, missing = self._root, list[PrefixNode](), 0, NONE
        for low in range(0, (len(ids) - 1) // PAGE * PAGE, PAGE):
            child = node.children.get(tuple(ids[low : low + PAGE]))
            if child is None:
                break
            node = child
            found.append(node)
            if node.sliding == NONE:
                missing = len(found) - 1
            if missing < self._oldest(len(found) * PAGE):
                usable = len(found)
        return found[:usable]

    def _oldest(self, length: int) -> int:
        """The first block that the token at position `length` sees on a sliding layer."""
        return max(0, length - self.reach) // PAGE

    def reusable(self, ids: Sequence[int]) -> int:
        """How many leading tokens of a prompt need not be encoded."""
        return len(self._find(ids)) * PAGE

    def computing(self, ids: Sequence[int]) -> BlockTable | None:
        """The running request that is about to complete the next block that `ids` need.

        Whoever waits for it gets it for nothing: n drafts of a prompt encode it once.
        """
        found = self._find(ids)
        key = self._key(found[-1] if found else self._root, ids, len(found))
        return None if key is None else self._pending.get(key)

    @staticmethod
    def _key(node: PrefixNode, ids: Sequence[int], at: int) -> tuple[int, tuple[int, ...]] | None:
        block = tuple(ids[at * PAGE : (at + 1) * PAGE])
        return (id(node), block) if len(block) == PAGE else None

    # -- the life of a table -------------------------------------------------------------------

    def open(
        self, ids: Sequence[int], room: int, first: int, reuse: int | None = None
    ) -> BlockTable | None:
        """Pages for a request, or None (and nothing has changed) where they do not suffice.

        Args:
            ids: all that must be encoded before its canvas; `BlockTable.ids` tells what already is.
            room: positions that its full layers need until the canvas is finished.
            first: tokens that its first forward adds; sliding pages are taken as it goes on.
            reuse: how many of the first ids may come from pages that are there; None: all.
        """
        table = BlockTable(prompt=ids)
        # Pages are given as if one more token followed: the last one is always encoded.
        for block in self._find(ids if reuse is None else ids[: reuse + 1]):
            self._use(table, block)
        self.tables.add(table)
        length = len(table.ids)
        if not self.reserve(table, max(room, length), min(room, length + first)):
            self.close(table)
            return None
        self.hit_tokens += length
        self._add_pending(table)
        return table

    def _use(self, table: BlockTable, block: PrefixNode) -> None:
        """Append a block of the tree; its sliding page only if the window can reach it."""
        if block.users == 0:
            del self._idle[block]
        block.users += 1
        table.shared.append(block)
        table.full.append(block.full)
        table.ids += block.ids
        table.sliding.append(block.sliding)
        if block.sliding != NONE:
            self._view(block)
        self._pass(table)

    def _view(self, block: PrefixNode) -> None:
        if block.viewers == 0:
            self._unseen.pop(block, None)
        block.viewers += 1

    def reserve(self, table: BlockTable, full: int, sliding: int) -> bool:
        """Make room for positions below `full` and `sliding`; False: nothing has changed."""
        more = -(-full // PAGE) - len(table.full)
        slide = -(-sliding // PAGE) - len(table.sliding)
        if more > self.available or slide > self.sliding.free + len(self._unseen):
            return False
        while more > self.full.free:
            self._evict()
        while slide > self.sliding.free:
            self._evict_sliding()
        if more > 0:
            table.full += self.full.take(more, table.full[-1] if table.full else NONE)
        if slide > 0:
            last = table.sliding[-1] if table.sliding else NONE
            table.sliding += self.sliding.take(slide, last)
        return True

    def _evict(self) -> None:
        """Forget the block that nobody has used for the longest time."""
        block, _ = self._idle.popitem(last=False)
        assert block.parent is not None and not block.children and not block.viewers
        del block.parent.children[block.ids]
        self.full.give(block.full)
        if block.sliding != NONE:
            del self._unseen[block]
            self.sliding.give(block.sliding)
        self.evicted += 1

    def forget(self) -> None:
        """Forget every block that nobody uses."""
        while self._idle:
            self._evict()

    def _evict_sliding(self) -> None:
        """Give back the sliding page that nobody has seen for the longest time."""
        block, _ = self._unseen.popitem(last=False)
        self.sliding.give(block.sliding)
        block.sliding = NONE

    def encoded(self, table: BlockTable, ids: Iterable[int]) -> None:
        """These tokens are in the pages now. Complete blocks go into the tree."""
        table.ids += ids
        self._drop_pending(table)
        for number in range(len(table.shared), len(table.ids) // PAGE):
            self._enter(table, number)
        self._pass(table)
        self._add_pending(table)

    def _enter(self, table: BlockTable, number: int) -> None:
        """Put a complete block into the tree, or use the one that stands there already."""
        parent = table.shared[-1] if table.shared else self._root
        ids = tuple(table.ids[number * PAGE : (number + 1) * PAGE])
        full, sliding = table.full[number], table.sliding[number]
        block = parent.children.get(ids)
        if block is None:
            block = PrefixNode(ids, None if parent is self._root else parent, full, sliding)
            block.parent = parent
            parent.children[ids] = block
        else:
            self.full.give(full)
            table.full[number] = block.full
            if block.users == 0:
                del self._idle[block]
            if block.sliding == NONE:
                block.sliding = sliding
            else:
                self.sliding.give(sliding)
                table.sliding[number] = block.sliding
        block.users += 1
        self._view(block)
        table.shared.append(block)

    def _pass(self, table: BlockTable) -> None:
        """Let go of sliding pages that no later token of the request can see."""
        for number in range(table.passed, min(self._oldest(len(table.ids)), len(table.sliding))):
            page, table.sliding[number] = table.sliding[number], NONE
            table.passed = number + 1
            if page == NONE:
                continue
            assert number < len(table.shared), "a block in front of the window is complete"
            self._unview(table.shared[number])

    def _unview(self, block: PrefixNode) -> None:
        block.viewers -= 1
        if block.viewers == 0:
            self._unseen[block] = None

    def close(self, table: BlockTable) -> None:
        """Give everything back; what is complete stays in the tree until it is needed."""
        self.tables.remove(table)
        self._drop_pending(table)
        for number in range(len(table.shared), len(table.full)):
            self.full.give(table.full[number])
        for number in range(len(table.shared), len(table.sliding)):
            self.sliding.give(table.sliding[number])
        for number in reversed(range(len(table.shared))):
            block = table.shared[number]
            if table.sliding[number] != NONE:
                self._unview(block)
            block.users -= 1
            if block.users == 0:
                self._idle[block] = None
        table.full, table.sliding, table.shared = [], [], []

    def _add_pending(self, table: BlockTable) -> None:
        parent = table.shared[-1] if table.shared else self._root
        key = self._key(parent, table.prompt, len(table.shared))
        if key is not None and key not in self._pending:
            self._pending[key] = table
            table.pending = key

    def _drop_pending(self, table: BlockTable) -> None:
        if table.pending is not None:
            del self._pending[table.pending]
            table.pending = None
