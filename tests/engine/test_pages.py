"""The bookkeeping of pages: one owner each, shared beginnings, nothing lost. No tensors."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.engine.block_table import BlockTable, Prefix
from dgemma.engine.page_allocator import GAP, NONE, PageAllocator
from dgemma.engine.pages import Pages
from dgemma.request_parts import PromptContent
from dgemma.types import PAGE
from tests.support.engine_checks import check_pages

WINDOW = 2 * PAGE + 1
"""A token sees the two pages' worth of tokens before it."""


def ids(blocks: int, start: int = 0, extra: int = 1) -> list[int]:
    """That many blocks and a little more, no two tokens alike."""
    return list(range(start, start + blocks * PAGE + extra))


def opened(pages: Pages, prompt: list[int], **extra: Any) -> BlockTable:
    """A request whose prompt is encoded."""
    table = pages.open(Prefix(prompt, **extra), len(prompt) + PAGE, len(prompt))
    assert table is not None
    pages.encoded(table, prompt[len(table.ids) :])
    check_pages(pages)
    return table


def reusable(pages: Pages, prompt: list[int], **extra: Any) -> int:
    """How many leading tokens of a prompt need not be encoded."""
    prefix = Prefix(prompt, **extra)
    return len(pages._find(prefix)) * PAGE


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
    same = pages.open(Prefix(ids(3)), 4 * PAGE, 1)
    assert same is not None and len(same.ids) == 3 * PAGE
    assert same.full[:3] == first.full[:3] and same.full[3:] != first.full[3:]
    other = [*ids(2, extra=0), *ids(1, start=10_000)]
    fork = pages.open(Prefix(other), 4 * PAGE, 1)
    assert fork is not None and len(fork.ids) == 2 * PAGE and fork.full[:2] == first.full[:2]
    assert reusable(pages, [7, *ids(3)[1:]]) == 0
    check_pages(pages)


def image(start: int, length: int, key: str = "cat") -> PromptContent:
    """A run of placeholders, all of one id in a prompt."""
    return PromptContent(start=start, length=length, key=key)


def test_owners_share_no_page() -> None:
    """One owner times a prompt to learn whether another has sent it."""
    pages = Pages(60, 60, WINDOW)
    first = opened(pages, ids(3), owner="a")
    assert reusable(pages, ids(3), owner="b") == reusable(pages, ids(3)) == 0
    assert reusable(pages, ids(3), owner="a") == 3 * PAGE
    second = opened(pages, ids(3), owner="b")
    assert not set(first.full) & set(second.full)
    pages.close(first)
    pages.close(second)
    check_pages(pages)
    assert pages.cached == 6


@pytest.mark.fault("R H2")
def test_what_is_common_is_everyones() -> None:
    """Each owner encodes the template's own beginning, or a page beyond it is shared."""
    pages = Pages(60, 60, WINDOW)
    common = 2 * PAGE + 5
    first = opened(pages, ids(4), owner="a", common=common)
    assert reusable(pages, ids(4), owner="b", common=common) == 2 * PAGE
    assert reusable(pages, ids(4), owner="b") == reusable(pages, [7], owner="b", common=1) == 0
    second = opened(pages, ids(4), owner="b", common=common)
    assert second.full[:2] == first.full[:2] and not set(second.full[2:]) & set(first.full[2:])
    assert reusable(pages, ids(4), owner="a", common=common) == 4 * PAGE
    assert pages.computing(Prefix(ids(5), "a", common=common)) is None


def test_two_images_of_equal_ids_share_no_page_from_there_on() -> None:
    """256 of an answer's 304 tokens come from the keys of another image."""
    pages = Pages(60, 60, WINDOW)
    prompt = [*ids(1, extra=10), *[5] * (2 * PAGE), *ids(2, start=9_000)]
    cat, dog = image(PAGE + 10, 2 * PAGE), image(PAGE + 10, 2 * PAGE, "dog")
    opened(pages, prompt, contents=(cat,))
    assert reusable(pages, prompt, contents=(cat,)) == len(prompt) // PAGE * PAGE
    assert reusable(pages, prompt, contents=(dog,)) == PAGE, "the text before it is the same"
    assert reusable(pages, prompt) == PAGE, "nor are they ids alone"
    opened(pages, prompt, contents=(dog,))
    assert reusable(pages, prompt, contents=(dog,)) == len(prompt) // PAGE * PAGE
    assert pages.hit_tokens == PAGE


def test_the_second_of_two_images_differs() -> None:
    """A key that names only the content that begins in a block, or only the last one."""
    pages = Pages(60, 60, WINDOW)
    prompt = [5] * (4 * PAGE + 1)
    opened(pages, prompt, contents=(image(0, PAGE), image(PAGE, 20), image(PAGE + 20, 2 * PAGE)))
    swapped = (image(0, PAGE), image(PAGE, 20, "dog"), image(PAGE + 20, 2 * PAGE))
    assert reusable(pages, prompt, contents=swapped) == PAGE
    last = (image(0, PAGE), image(PAGE, 20), image(PAGE + 20, 2 * PAGE, "dog"))
    assert reusable(pages, prompt, contents=last) == PAGE
    later = (image(0, PAGE), image(PAGE, 20), image(PAGE + 21, 2 * PAGE))
    assert reusable(pages, prompt, contents=later) == PAGE, "the same image, a token later"
    edge = (image(0, PAGE), image(PAGE, 20), image(PAGE + 20, PAGE - 20))
    assert reusable(pages, prompt, contents=edge) == PAGE, "a part of the image"


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
    again = pages.open(Prefix(ids(9)), 10 * PAGE, PAGE)
    assert again is not None and len(again.ids) == 5 * PAGE and pages.hit_tokens == 5 * PAGE


def test_pages_out_of_the_window_are_let_go() -> None:
    """Sliding layers that keep a whole prompt fill the memory the window was made to save."""
    pages = Pages(60, 6, WINDOW)
    table = pages.open(Prefix(ids(40)), 42 * PAGE, PAGE)
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
    table = pages.open(Prefix(ids(4)), 5 * PAGE, len(ids(4)))
    assert table is not None
    pages.encoded(table, ids(4))
    pages.close(table)
    assert reusable(pages, ids(4)) == 4 * PAGE
    assert reusable(pages, ids(3)) == 3 * PAGE
    # A request of its own takes the sliding pages of the first blocks, which were let go first.
    other = pages.open(Prefix(ids(2, start=50_000)), 3 * PAGE, 2 * PAGE + 1)
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
    table = pages.open(Prefix(ids(3, 90_000)), 3 * PAGE + 1, PAGE)
    assert table is not None
    check_pages(pages)
    assert reusable(pages, ids(2, 10_000)) < 2 * PAGE and reusable(pages, ids(2, 0)) == 2 * PAGE


def test_too_few_pages_change_nothing() -> None:
    """A request that is half admitted keeps pages that nobody gives back."""
    pages = Pages(6, 6, WINDOW)
    opened(pages, ids(3))
    free = pages.full.free, pages.sliding.free
    assert pages.open(Prefix(ids(7, 5_000)), 8 * PAGE, PAGE) is None
    assert (pages.full.free, pages.sliding.free) == free and len(pages.tables) == 1
    check_pages(pages)


def test_a_block_that_is_being_made_is_waited_for() -> None:
    """n drafts of one prompt encode it n times."""
    pages = Pages(60, 60, WINDOW)
    first = pages.open(Prefix(ids(2)), 4 * PAGE, 3 * PAGE)
    assert first is not None
    assert pages.computing(Prefix(ids(2))) is first
    assert pages.computing(Prefix(ids(2, 7_000))) is None
    pages.encoded(first, ids(2)[:PAGE])
    assert pages.computing(Prefix(ids(2))) is first, "the second block"
    other = [*ids(1, extra=0), *ids(1, 7_000)]
    assert pages.computing(Prefix(other)) is None, "it goes another way from here"
    pages.encoded(first, ids(2)[PAGE:])
    assert pages.computing(Prefix(ids(2))) is None
    second = pages.open(Prefix(ids(3)), 5 * PAGE, PAGE)
    assert second is not None and pages.computing(Prefix(ids(3))) is second
    pages.close(second)
    assert pages.computing(Prefix(ids(3))) is None, "who claimed it is gone"
    check_pages(pages)


def test_another_owners_block_is_not_waited_for() -> None:
    """A request waits for pages that it may not use, and shows that another sends the same."""
    pages = Pages(60, 60, WINDOW)
    first = pages.open(Prefix(ids(2), "a", (image(3, 5),)), 4 * PAGE, 3 * PAGE)
    assert first is not None
    assert pages.computing(Prefix(ids(2), "a", (image(3, 5),))) is first
    assert pages.computing(Prefix(ids(2), "b", (image(3, 5),))) is None
    assert pages.computing(Prefix(ids(2), "a", (image(3, 5, "dog"),))) is None


def random_prefix(draw: random.Random) -> Prefix:
    """Few different blocks, owners and contents, so that many beginnings are shared."""
    text = [draw.randrange(2) for _ in range(draw.randrange(1, 6))]
    prompt = [t for block in text for t in [block] * PAGE][: draw.randrange(1, 5 * PAGE)]
    start = draw.randrange(0, len(prompt), 40)
    content = image(start, draw.randrange(1, len(prompt) - start + 1), draw.choice(("cat", "dog")))
    return Prefix(prompt, draw.choice(("", "a")), (content,) if draw.random() < 0.5 else ())


def check_shared(tables: list[BlockTable]) -> None:
    """Two requests use a page only if all that it depends on is equal, worked out by hand."""
    for one, other in itertools.combinations(tables, 2):
        for number, page in enumerate(one.full):
            if page in other.full:
                end = (number + 1) * PAGE
                assert number == other.full.index(page) and one.ids[:end] == other.ids[:end]
                assert one.prefix.owner == other.prefix.owner
                ours, theirs = (
                    [c for c in table.prefix.contents if c.start < end] for table in (one, other)
                )
                assert ours == theirs


@given(seed=st.integers(0, 2**32), full=st.integers(8, 40), sliding=st.integers(8, 40))
def test_random_lives(seed: int, full: int, sliding: int) -> None:
    """Any order of opening, growing, closing and evicting keeps one owner for each page."""
    draw = random.Random(seed)
    pages = Pages(full, sliding, draw.choice((2, PAGE, WINDOW, 5 * PAGE)))
    live: list[BlockTable] = []
    for _ in range(60):
        if draw.random() < 0.4:
            prefix = random_prefix(draw)
            length = len(prefix.ids)
            table = pages.open(prefix, length + PAGE, min(PAGE, length))
            if table is not None:
                live.append(table)
        elif live:
            table = draw.choice(live)
            prompt = table.prefix.ids
            rest = list(prompt[len(table.ids) :]) or [draw.randrange(2) for _ in range(PAGE)]
            count = draw.randrange(1, 1 + min(len(rest), PAGE))
            end = len(table.ids) + count
            if draw.random() < 0.2 or not pages.reserve(table, end, end):
                pages.close(table)
                live.remove(table)
            else:
                pages.encoded(table, rest[:count])
        check_pages(pages)
        check_shared(live)
    for table in live:
        pages.close(table)
    check_pages(pages)
    assert pages.available == full, "a page is lost"
