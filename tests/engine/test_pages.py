"""The bookkeeping of pages: one owner each, shared beginnings, nothing lost. No tensors."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.engine.page_allocator import GAP, NONE, PageAllocator
from dgemma.engine.pages import BlockTable, Pages
from dgemma.types import PAGE
from tests.support.engine_checks import check_pages

WINDOW = 2 * PAGE + 1
"""A token sees the two pages' worth of tokens before it."""


def ids(blocks: int, start: int = 0, extra: int = 1) -> list[int]:
    """That many blocks and a little more, no two tokens alike."""
    return list(range(start, start + blocks * PAGE + extra))


def opened(pages: Pages, prompt: list[int]) -> BlockTable:
    """A request whose prompt is encoded."""
    table = pages.open(prompt, len(prompt) + PAGE, len(prompt))
    assert table is not None
    pages.encoded(table, prompt[len(table.ids) :])
    check_pages(pages)
    return table


def reusable(pages: Pages, prompt: list[int]) -> int:
    """How many leading tokens of a prompt need not be encoded."""
    return len(pages._find(prompt)) * PAGE


@pytest.mark.process
def test_no_torch() -> None:
    """Pages and scheduler must be testable, and readable, without tensors."""
    code = "import sys, dgemma.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pages_lie_side_by_side() -> None:
    """Pages dealt out one by one would have every request's keys gathered at every step."""
    allocator = PageAllocator(100)
    first = allocator.take(3, NONE)
    second = allocator.take(3, NONE)
    assert first == [0, 1, 2] and second == [3 + GAP, 4 + GAP, 5 + GAP]
    assert allocator.take(2, first[-1]) == [3, 4], "a run goes on where it ended"


def test_an_arena_gives_its_last_page() -> None:
    """A search for runs misses single pages, or hands one out twice."""
    allocator = PageAllocator(7)
    pages = allocator.take(7, NONE)
    assert sorted(pages) == list(range(7)) and allocator.free == 0
    for page in pages[::2]:
        allocator.give(page)
    assert sorted(allocator.take(4, NONE)) == sorted(pages[::2])


def test_a_page_given_back_twice() -> None:
    """Two requests would write over each other's keys."""
    allocator = PageAllocator(2)
    (page,) = allocator.take(1, NONE)
    allocator.give(page)
    with pytest.raises(AssertionError, match="twice"):
        allocator.give(page)


def test_the_same_beginning_is_shared() -> None:
    """A prefix that is encoded again, or shared where it differs."""
    pages = Pages(60, 60, WINDOW)
    first = opened(pages, ids(3))
    same = pages.open(ids(3), 4 * PAGE, 1)
    assert same is not None and len(same.ids) == 3 * PAGE
    assert same.full[:3] == first.full[:3] and same.full[3:] != first.full[3:]
    other = [*ids(2, extra=0), *ids(1, start=10_000)]
    fork = pages.open(other, 4 * PAGE, 1)
    assert fork is not None and len(fork.ids) == 2 * PAGE and fork.full[:2] == first.full[:2]
    assert reusable(pages, [7, *ids(3)[1:]]) == 0
    check_pages(pages)


def test_a_whole_prompt_is_never_reused() -> None:
    """With nothing to encode the twin has no hidden state to choose its first token from."""
    pages = Pages(60, 60, WINDOW)
    opened(pages, ids(2, extra=0))
    assert reusable(pages, ids(2, extra=0)) == PAGE
    assert reusable(pages, ids(2, extra=1)) == 2 * PAGE


def test_a_turn_goes_on_behind_the_last_one() -> None:
    """A finished request takes its keys along, and the next turn of a chat starts over."""
    pages = Pages(60, 60, WINDOW)
    pages.close(opened(pages, ids(5)))
    assert pages.cached == 5 and pages.available == 60
    again = pages.open(ids(9), 10 * PAGE, PAGE)
    assert again is not None and len(again.ids) == 5 * PAGE and pages.hit_tokens == 5 * PAGE


def test_pages_out_of_the_window_are_let_go() -> None:
    """Sliding layers that keep a whole prompt fill the memory the window was made to save."""
    pages = Pages(60, 6, WINDOW)
    table = pages.open(ids(40), 42 * PAGE, PAGE)
    assert table is not None
    for low in range(0, 40 * PAGE, PAGE):
        assert pages.reserve(table, 42 * PAGE, low + PAGE)
        pages.encoded(table, ids(40)[low : low + PAGE])
        check_pages(pages)
    held = [page for page in table.sliding if page != NONE]
    assert len(held) == 2, "tokens behind the last one see the two blocks before them"


def test_a_beginning_without_its_window_is_no_use() -> None:
    """Blocks whose sliding pages are gone are reused as if the window were there."""
    pages = Pages(60, 6, WINDOW)
    table = pages.open(ids(4), 5 * PAGE, len(ids(4)))
    assert table is not None
    pages.encoded(table, ids(4))
    pages.close(table)
    assert reusable(pages, ids(4)) == 4 * PAGE
    assert reusable(pages, ids(3)) == 3 * PAGE
    # A request of its own takes the sliding pages of the first blocks, which were let go first.
    other = pages.open(ids(2, start=50_000), 3 * PAGE, 2 * PAGE + 1)
    assert other is not None
    check_pages(pages)
    assert reusable(pages, ids(4)) == 4 * PAGE, "the end of the prompt was used last"
    assert reusable(pages, ids(2)) == 0, "its window is gone"


def test_the_least_recently_used_goes_first() -> None:
    """Eviction takes what was just used, or a block that others stand on."""
    pages = Pages(8, 8, WINDOW)
    for start in (0, 10_000, 20_000):
        pages.close(opened(pages, ids(2, start)))
    opened(pages, ids(2, 0))  # used again
    table = pages.open(ids(3, 90_000), 3 * PAGE + 1, PAGE)
    assert table is not None
    check_pages(pages)
    assert reusable(pages, ids(2, 10_000)) < 2 * PAGE and reusable(pages, ids(2, 0)) == 2 * PAGE


def test_too_few_pages_change_nothing() -> None:
    """A request that is half admitted keeps pages that nobody gives back."""
    pages = Pages(6, 6, WINDOW)
    opened(pages, ids(3))
    free = pages.full.free, pages.sliding.free
    assert pages.open(ids(7, 5_000), 8 * PAGE, PAGE) is None
    assert (pages.full.free, pages.sliding.free) == free and len(pages.tables) == 1
    check_pages(pages)


def test_a_block_that_is_being_made_is_waited_for() -> None:
    """n drafts of one prompt encode it n times."""
    pages = Pages(60, 60, WINDOW)
    first = pages.open(ids(2), 4 * PAGE, 3 * PAGE)
    assert first is not None
    assert pages.computing(ids(2)) is first and pages.computing(ids(2, 7_000)) is None
    pages.encoded(first, ids(2)[:PAGE])
    assert pages.computing(ids(2)) is first, "the second block"
    other = [*ids(1, extra=0), *ids(1, 7_000)]
    assert pages.computing(other) is None, "it goes another way from here"
    pages.encoded(first, ids(2)[PAGE:])
    assert pages.computing(ids(2)) is None
    second = pages.open(ids(3), 5 * PAGE, PAGE)
    assert second is not None and pages.computing(ids(3)) is second
    pages.close(second)
    assert pages.computing(ids(3)) is None, "who claimed it is gone"
    check_pages(pages)


@given(seed=st.integers(0, 2**32), full=st.integers(8, 40), sliding=st.integers(8, 40))
def test_random_lives(seed: int, full: int, sliding: int) -> None:
    """Any order of opening, growing, closing and evicting keeps one owner for each page."""
    draw = random.Random(seed)
    pages = Pages(full, sliding, draw.choice((2, PAGE, WINDOW, 5 * PAGE)))
    live: list[tuple[BlockTable, list[int]]] = []
    for _ in range(60):
        if draw.random() < 0.4:
            # Few different blocks, so that many beginnings are shared.
            text = [draw.randrange(2) for _ in range(draw.randrange(1, 6))]
            prompt = [t for block in text for t in [block] * PAGE][: draw.randrange(1, 5 * PAGE)]
            table = pages.open(prompt, len(prompt) + PAGE, min(PAGE, len(prompt)))
            if table is not None:
                live.append((table, prompt))
        elif live:
            table, prompt = draw.choice(live)
            rest = prompt[len(table.ids) :] or [draw.randrange(2) for _ in range(PAGE)]
            count = draw.randrange(1, 1 + min(len(rest), PAGE))
            end = len(table.ids) + count
            if draw.random() < 0.2 or not pages.reserve(table, end, end):
                pages.close(table)
                live = [pair for pair in live if pair[0] is not table]
            else:
                pages.encoded(table, rest[:count])
        check_pages(pages)
    for table, _ in live:
        pages.close(table)
    check_pages(pages)
    assert pages.available == full, "a page is lost"
