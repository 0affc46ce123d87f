"""Invariants of the engine's bookkeeping: every page has one owner, every count is right."""

from __future__ import annotations

from dgemma.engine.block_table import PrefixNode
from dgemma.engine.owners import is_valid
from dgemma.engine.page_allocator import NONE
from dgemma.engine.pages import Pages
from dgemma.engine.scheduler import Scheduler
from dgemma.types import PAGE


def check_pages(pages: Pages) -> None:
    """Every page has exactly one owner and every count is right."""
    blocks, queue = list[PrefixNode](), list(pages._root.children.values())
    while queue:
        blocks.append(queue.pop())
        queue += blocks[-1].children.values()
    users = {block: 0 for block in blocks}
    viewers = dict(users)
    full = [block.full for block in blocks]
    sliding = [block.sliding for block in blocks if block.sliding != NONE]
    for table in pages.tables:
        own = len(table.shared)
        full += table.full[own:]
        sliding += table.sliding[own:]
        for fork in table.forks:
            assert len(fork.full) == len(fork.sliding) and fork.first >= own
            full += fork.full
            sliding += fork.sliding
        for number, block in enumerate(table.shared):
            users[block] += 1
            assert table.full[number] == block.full
            viewers[block] += table.sliding[number] != NONE
            assert table.sliding[number] in (NONE, block.sliding)
        oldest = pages._oldest(len(table.ids))
        assert NONE not in table.sliding[oldest:]
        assert all(page == NONE for page in table.sliding[:oldest]), "the window has passed it"
        assert len(table.ids) <= len(table.full) * PAGE
    for allocator, owned in ((pages.full, full), (pages.sliding, sliding)):
        assert len(set(owned)) == len(owned), "a page has two owners"
        assert allocator.free == allocator.count - len(owned), "a page is lost"
        assert not any(allocator._map[page] for page in owned), "a free page has an owner"
    for block in blocks:
        assert block.users == users[block] and block.viewers == viewers[block]
        assert (block in pages._idle) == (block.users == 0)
        assert (block in pages._unseen) == (block.viewers == 0 and block.sliding != NONE)
    assert len(pages._idle) <= len(blocks) and len(pages._unseen) <= len(blocks)
    assert all(table in pages.tables for table in pages._pending.values())


def check_scheduler(scheduler: Scheduler) -> None:
    """Every sequence is in one place and every count is right; so are the pages."""
    check_pages(scheduler.pages)
    queues = [queue for owner in scheduler.owners for queue in owner.queues.values()]
    queued = [place[2] for queue in queues for place in queue if is_valid(place)]
    assert len(queued) == scheduler.waiting == len(set(queued))
    assert all(seq.block_table is None for seq in queued)
    assert all(not seq.waiting and seq.block_table is not None for seq in scheduler.running)
    assert {seq.block_table for seq in scheduler.running} == scheduler.pages.tables
    assert len(scheduler.running) <= scheduler.max_running
    for seq in scheduler.running:
        assert seq.block_table is not None and len(seq.block_table.ids) == seq.encoded
    for owner in scheduler.owners:
        own = [seq for seq in (*queued, *scheduler.running) if seq.owner == owner.name]
        assert owner.live == len(own) > 0, "an owner without a live sequence"
        assert owner.waiting == sum(seq.waiting for seq in own)
        assert set(owner.running) == {seq for seq in own if not seq.waiting}
    assert sum(owner.live for owner in scheduler.owners) == len(scheduler)
