"""Draws: the same numbers everywhere, and hash classes that part the splits."""

from __future__ import annotations

from dgemma.tasks import slots
from dgemma.tasks.draw import HELDOUT_PART, SPLITS, Draw, hash64, split_of


def test_the_stream_is_splitmix64() -> None:
    # Published first outputs for state 0; a changed stream would silently change every data set.
    draw = Draw("any")
    draw._state = 0
    assert [draw.bits() for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_keys_do_not_run_into_each_other() -> None:
    # ("a", 11) and ("a1", 1), or 1 and "1", must be different streams.
    keys: list[tuple[object, ...]] = [("a", 11), ("a1", 1), ("a", "11"), ("a", 1, 1), ("a", 12)]
    assert len({hash64(*key) for key in keys}) == len(keys)


def test_ranges_and_samples() -> None:
    # An off-by-one would lose a digit of a Sudoku or repeat one. The draws are fixed by the key.
    draw = Draw("ranges")
    assert {draw.between(3, 5) for _ in range(100)} == {3, 4, 5}
    assert {draw.below(4) for _ in range(100)} == {0, 1, 2, 3}
    for _ in range(50):
        assert sorted(draw.shuffled(range(9))) == list(range(9))
        assert len(set(draw.sample(range(9), 4))) == 4
    firsts = [draw.shuffled(range(3))[0] for _ in range(3000)]
    assert all(900 < firsts.count(k) < 1100 for k in range(3))  # 1000 expected, sigma 26


def test_split_sizes() -> None:
    # 1/8 of values are held out: 1000 expected of 8000, sigma 30.
    held = sum(split_of("test", k) == "heldout" for k in range(8000))
    assert 880 < held < 8000 / HELDOUT_PART + 120


def test_small_pools_have_values_in_both_splits() -> None:
    # A pool without held-out values would make the held-out maker search for ever.
    for split in SPLITS:
        assert sum(split_of("item", thing) == split for thing in slots.ITEMS) >= 4
        assert sum(split_of("number", str(k)) == split for k in range(2, 100)) >= 6
        times = [f"{h:02}:{m:02}" for h in range(24) for m in range(0, 60, 5)]
        assert sum(split_of("time", time) == split for time in times) >= 20


def test_items_are_distinct_and_take_a_plain_article_and_plural() -> None:
    # The forms write "a {item}" and "{item}s"; "a oven" or "boxs" would teach wrong English.
    assert len(set(slots.ITEMS)) == len(slots.ITEMS)
    for thing in slots.ITEMS:
        assert thing[0] not in "aeiou" and not thing.endswith(("s", "x", "ch", "sh", "fe"))
        assert thing[-1] != "y" or thing[-2] in "aeiou"
