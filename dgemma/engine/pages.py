"""The pages of the key-value memory and their owners: allocate, share, evict.

A block is `PAGE` consecutive tokens of a sequence. Each block has one page in the group of the
full layers, which keep every token, and, while a later token can still see it, one in the group of
the sliding layers. A complete block enters the prefix cache, a tree keyed by all that its keys and
values depend on: owner, ids, contents that the ids stand for, and those of the blocks before it.
Any sequence with the same beginning uses the same pages. The tree compares the ids themselves, not
a hash of them. The pages of a block that nobody uses stay until they are needed, the least recently
used first.

It must not know tensors (no torch) or the order of sequences.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from dgemma.engine.block_table import (
    BlockKey,
    BlockTable,
    Fork,
    Place,
    Prefix,
    PrefixNode,
    blocks,
)
from dgemma.engine.page_allocator import NONE, PageAllocator
from dgemma.types import PAGE


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
        self._root = PrefixNode(BlockKey(()), None, NONE, NONE)
        self._idle: OrderedDict[PrefixNode, None] = OrderedDict()  # no users; children come first
        self._unseen: OrderedDict[PrefixNode, None] = OrderedDict()  # a sliding page, no viewers
        self._pending: dict[Place, BlockTable] = {}

    # -- state ---------------------------------------------------------------------------------

    @property
    def cached(self) -> int:
        """Blocks that are kept for later sequences."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """Full pages that are free or can be evicted."""
        return self.full.free + len(self._idle)

    def could(
        self, prefix: Prefix, room: int, first: int, without: Iterable[BlockTable], rows: int = 1
    ) -> bool:
        """Whether `open` might succeed after other tables are closed; False is certain."""
        found = len(self._find(prefix))
        full, sliding = self.available, self.sliding.free + len(self._unseen)
        for table in without:
            full += table.count
            sliding += sum(page != NONE for page in table.sliding)
            sliding += sum(len(fork.sliding) for fork in table.forks)
        end = -(-min(room, found * PAGE + first) // PAGE)
        whole, length = -(-room // PAGE), len(prefix.ids)
        forked = blocks(length, room, rows) - whole
        return full >= whole + forked - found and sliding >= end + forked - found

    @property
    def capacity(self) -> int:
        """Most tokens of one sequence."""
        return self.full.count * PAGE

    def _find(self, prefix: Prefix, most: int | None = None) -> list[PrefixNode]:
        """The blocks of the tree that a prefix begins with and that a sequence may start after.

        At least one of its first `most` tokens is left over, so that a sequence always has
        something to encode. All sliding pages in reach of the window must be there.
        """
        length = len(prefix.ids) if most is None else min(most, len(prefix.ids))
        node, found, usable, missing = self._root, list[PrefixNode](), 0, NONE
        for number in range((length - 1) // PAGE):
            key = prefix.key(number)
            child = None if key is None else node.children.get(key)
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

    def computing(self, prefix: Prefix) -> BlockTable | None:
        """The running sequence that is about to complete the next block that a prefix needs.

        Another sequence that waits gets the block for nothing: n drafts of a prompt encode it once.
        """
        found = self._find(prefix)
        place = self._place(found, prefix)
        return None if place is None else self._pending.get(place)

    def _place(self, before: list[PrefixNode], prefix: Prefix) -> Place | None:
        """The place of the block that follows; None if its tokens are not all known."""
        key = prefix.key(len(before))
        return None if key is None else (id(before[-1] if before else self._root), key)

    # -- the life of a table -------------------------------------------------------------------

    def open(
        self, prefix: Prefix, room: int, first: int, reuse: int | None = None, rows: int = 1
    ) -> BlockTable | None:
        """Pages for a sequence; None, and no change, if there are not enough.

        Args:
            prefix: all ids to encode before its canvas; `BlockTable.ids` are encoded already.
            room: positions that its full layers need until the canvas is finished.
            first: tokens that its first forward adds; later ones take sliding pages as they go.
            reuse: how many of the first ids may come from the tree; None: all.
            rows: canvases side by side.
        """
        table = BlockTable(prefix=prefix)
        # The lookup is as if one more token followed: the last one is always encoded.
        for block in self._find(prefix, None if reuse is None else reuse + 1):
            self._use(table, block)
        self.tables.add(table)
        length = len(table.ids)
        fits = self.reserve(table, max(room, length), min(room, length + first))
        if not (fits and self.fork(table, room, rows)):
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
        table.ids += block.key.ids
        table.sliding.append(block.sliding)
        if block.sliding != NONE:
            self._view(block)
        self._pass(table)

    def _view(self, block: PrefixNode) -> None:
        if block.viewers == 0:
            self._unseen.pop(block, None)
        block.viewers += 1

    def reserve(self, table: BlockTable, full: int, sliding: int) -> bool:
        """Make room for positions below `full` and `sliding`. False: no room, and no change."""
        more = -(-full // PAGE) - len(table.full)
        slide = -(-sliding // PAGE) - len(table.sliding)
        if not self._make_room(more, slide):
            return False
        if more > 0:
            table.full += self.full.take(more, table.full[-1] if table.full else NONE)
        if slide > 0:
            last = table.sliding[-1] if table.sliding else NONE
            table.sliding += self.sliding.take(slide, last)
        return True

    def fork(self, table: BlockTable, room: int, rows: int) -> bool:
        """See that each of `rows` canvases, which end before `room`, has pages of its own to write.

        Pages of forks that are of no use any more are given back. False: no room, and no others.
        """
        first, forks = len(table.prefix.ids) // PAGE, table.forks
        size = -(-room // PAGE) - first
        while forks and (
            len(forks) >= rows or (forks[-1].first, len(forks[-1].full)) != (first, size)
        ):
            self._drop_fork(table)
        if not self._make_room(*[(rows - 1 - len(forks)) * size] * 2):
            return False
        while len(forks) < rows - 1:
            forks.append(Fork(first, self.full.take(size, NONE), self.sliding.take(size, NONE)))
        return True

    def _drop_fork(self, table: BlockTable) -> None:
        fork = table.forks.pop()
        for full, sliding in zip(fork.full, fork.sliding, strict=True):
            self.full.give(full)
            self.sliding.give(sliding)

    def _make_room(self, full: int, sliding: int) -> bool:
        """See that so many pages are free. False: they cannot be, and nothing has changed."""
        if full > self.available or sliding > self.sliding.free + len(self._unseen):
            return False
        while full > self.full.free:
            self._evict()
        while sliding > self.sliding.free:
            self._evict_sliding()
        return True

    def _evict(self) -> None:
        """Evict the least recently used block."""
        block, _ = self._idle.popitem(last=False)
        assert block.parent is not None and not block.children and not block.viewers
        del block.parent.children[block.key]
        self.full.give(block.full)
        if block.sliding != NONE:
            del self._unseen[block]
            self.sliding.give(block.sliding)

    def forget(self) -> None:
        """Evict every block that nobody uses."""
        while self._idle:
            self._evict()

    def _evict_sliding(self) -> None:
        """Free the least recently seen sliding page."""
        block, _ = self._unseen.popitem(last=False)
        self.sliding.give(block.sliding)
        block.sliding = NONE

    def encoded(self, table: BlockTable, ids: Iterable[int]) -> None:
        """Record that these tokens are in the pages. Complete blocks go into the tree."""
        table.ids += ids
        self._drop_pending(table)
        for number in range(len(table.shared), len(table.ids) // PAGE):
            self._enter(table, number)
        self._pass(table)
        self._add_pending(table)

    def _enter(self, table: BlockTable, number: int) -> None:
        """Put a complete block into the tree, or use the one that is there already."""
        parent = table.shared[-1] if table.shared else self._root
        key = replace(table.prefix, ids=table.ids).key(number)
        assert key is not None, "the block is complete"
        full, sliding = table.full[number], table.sliding[number]
        block = parent.children.get(key)
        if block is None:
            block = parent.children[key] = PrefixNode(key, parent, full, sliding)
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
        """Free the sliding pages that no later token of the sequence can see."""
        for number in range(table.passed, min(self._oldest(len(table.ids)), len(table.sliding))):
            page, table.sliding[number] = table.sliding[number], NONE
            table.passed = number + 1
            if page == NONE:
                continue
            assert number < len(table.shared), "a block before the window is complete"
            self._unview(table.shared[number])

    def _unview(self, block: PrefixNode) -> None:
        block.viewers -= 1
        if block.viewers == 0:
            self._unseen[block] = None

    def close(self, table: BlockTable) -> None:
        """Free the table; complete blocks stay in the tree until they are evicted."""
        self.tables.remove(table)
        self._drop_pending(table)
        while table.forks:
            self._drop_fork(table)
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
        place = self._place(table.shared, table.prefix)
        if place is not None and place not in self._pending:
            self._pending[place] = table
            table.pending = place

    def _drop_pending(self, table: BlockTable) -> None:
        if table.pending is not None:
            del self._pending[table.pending]
            table.pending = None
