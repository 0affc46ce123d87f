"""Where a hole begins and ends within tokens, and how long it is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pytest

from dgemma.compose.fill import Hole, fill, infill
from dgemma.params import SamplingParams
from dgemma.text.token_table import token_table_of
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Request
from tests.support.plan_driver import Driver, facts_of, fits
from tests.support.tokenizers import gemma_tokenizer

# -- borders --------------------------------------------------------------------------------------


def test_left_border_heals(wordy: Tokenizer) -> None:
    """Catches a hole that cannot hold the natural token " Mira" because its space is pinned."""
    facts = facts_of(wordy)
    mira = wordy.encode(" Mira")
    assert len(mira) == 1
    driver = Driver(facts, prefer=frozenset(mira), belief=fits(1))
    result = driver.drive(infill(facts, "Dear ", ", hello.", SamplingParams(seed=1), max_hole=3))
    assert result.text == "Dear Mira, hello." and result.holes[0].text == "Mira"
    assert result.holes[0].token_ids == tuple(mira)
    assert result.holes[0].lengths[0].tokens == 0 and result.holes[0].lengths[0].chosen


def test_right_border_heals(wordy: Tokenizer) -> None:
    """Catches a hole before the middle of a word that cannot hold the word's own token."""
    facts = facts_of(wordy)
    jumps = wordy.encode(" jumps")
    driver = Driver(facts, prefer=frozenset(jumps), belief=fits(2))
    result = driver.drive(infill(facts, "It", "s.", SamplingParams(seed=1), max_hole=3))
    assert (result.text, result.holes[0].text) == ("It jumps.", " jump")


def test_one_token_over_both_borders(wordy: Tokenizer) -> None:
    """Catches borders that are healed one by one, so that no single token can span the hole."""
    facts = facts_of(wordy)
    driver = Driver(facts, prefer=frozenset(wordy.encode("then")), belief=fits(1))
    result = driver.drive(infill(facts, "th", "n", SamplingParams(seed=1), max_hole=3))
    assert (result.text, result.holes[0].text) == ("then", "e")
    assert result.holes[0].lengths[0].tokens == -2


def test_a_border_that_ends_a_token_stays_pinned(tokenizers: list[Tokenizer]) -> None:
    """Catches healing where no longer token exists: it would only throw a known token away."""
    facts = facts_of(tokenizers[0])  # letters alone: no token is longer than a letter
    driver = Driver(facts)
    driver.drive(infill(facts, "Dear ", "x", SamplingParams(seed=1), max_hole=2))
    for request in driver.asked:
        assert request.canvas is not None
        assert request.canvas.ids[:5] == tuple(tokenizers[0].encode("Dear "))
        assert set(range(5)) <= set(request.canvas.pinned)


@pytest.mark.slow
def test_the_real_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches borders that walk through all 262,144 tokens each time, or miss their words."""
    tokenizer = gemma_tokenizer()
    facts = facts_of(tokenizer, 64)
    hello = tokenizer.encode(" Anna")
    assert len(hello) == 1
    driver = Driver(facts, prefer=frozenset(hello), belief=fits(1))
    driver.drive(infill(facts, "Dear ", ", hi", SamplingParams(seed=1)))  # makes the tables
    looked: list[object] = []

    class Looked(list[bytes]):
        def __getitem__(self, at: Any) -> Any:
            looked.append(at)
            return super().__getitem__(at)

        def __iter__(self) -> Iterator[bytes]:
            looked.extend(range(len(self)))
            return super().__iter__()

    table = token_table_of(tokenizer)
    monkeypatch.setattr(table, "table", Looked(table.table))
    result = driver.drive(infill(facts, "Dear ", ", hi", SamplingParams(seed=1)))
    assert result.text == "Dear Anna, hi"
    assert 0 < len(looked) < 1000


# -- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 8, 13, 21])
def test_length_is_found(tokenizers: list[Tokenizer], length: int) -> None:
    """Catches a search that misses lengths between those of its first, coarse round."""
    facts = facts_of(tokenizers[0], 64)
    driver = Driver(facts, belief=fits(length))
    result = driver.drive(infill(facts, "one", ". two", SamplingParams(seed=1)))
    hole = result.holes[0]
    assert len(hole.token_ids) == length
    assert [t.tokens for t in hole.lengths if t.chosen] == [length]
    assert sum(t.final is not None for t in hole.lengths) == 3
    assert all(t.final is not None for t in hole.lengths if t.chosen)
    assert len(driver.rounds) <= 3
    read_only = [r.canvas is not None and r.canvas.read_only for r in driver.asked]
    assert read_only == [True] * (len(read_only) - 3) + [False] * 3


def test_lengths_of_several_holes(tokenizers: list[Tokenizer]) -> None:
    """Catches holes whose lengths are all the same, or found one canvas after another."""
    facts = facts_of(tokenizers[0], 96)
    wanted = (2, 6, 4)

    def belief(request: Request, ids: Sequence[int]) -> list[float]:
        assert request.canvas is not None
        out, run, number = [-0.1] * len(ids), 0, 0
        masks = request.canvas.masks
        for at, (mask, after) in enumerate(zip_longest(masks, masks[1:], fillvalue=-1)):
            run = run + 1 if mask >= 0 else 0
            if mask >= 0 and after < 0:
                out[at + 1] -= abs(run - wanted[number])
                number += 1
        return out

    driver = Driver(facts, belief=belief)
    parts = ["one", Hole(), ", two", Hole(), ", three", Hole(), "."]
    result = driver.drive(fill(facts, parts, SamplingParams(seed=1)))
    assert tuple(len(hole.token_ids) for hole in result.holes) == wanted
    assert len(driver.rounds) <= 3


def test_without_search_the_length_is_given(tokenizers: list[Tokenizer]) -> None:
    """Catches a search that runs although it was not asked for, or a length that is not exact."""
    facts = facts_of(tokenizers[0], 64)
    driver = Driver(facts)
    parts = ["a", Hole(max_tokens=7), "b", Hole(max_tokens=2), "c"]
    result = driver.drive(fill(facts, parts, SamplingParams(seed=1), search=False))
    assert [len(hole.token_ids) for hole in result.holes] == [7, 2]
    assert [len(requests) for requests in driver.rounds] == [1]
    assert result.holes[0].lengths == ()


def test_a_grid_of_holes_takes_one_request(tokenizers: list[Tokenizer]) -> None:
    """Catches room that is kept for borders which take none, and a search without a choice."""
    tokenizer = tokenizers[0]
    facts = facts_of(tokenizer, 96)
    draw, parts = random.Random(3), list[str | Hole]()
    digits = [tokenizer.encode(digit)[0] for digit in "123456789"]
    for _ in range(9):
        for _ in range(9):
            hole = Hole(max_tokens=1, allowed_token_ids=digits)
            parts.append(hole if draw.random() < 0.5 else draw.choice("123456789"))
        parts.append("\n")
    driver = Driver(facts)
    result = driver.drive(fill(facts, parts, SamplingParams(seed=1)))
    assert [len(requests) for requests in driver.rounds] == [1]
    assert re.fullmatch(r"([1-9]{9}\n){9}", result.text)


def test_slack_is_trimmed(tokenizers: list[Tokenizer]) -> None:
    """Catches a doubled blank where hole and following text both bring one."""
    facts = facts_of(tokenizers[0])
    blank, letter = tokenizers[0].encode(" ")[0], tokenizers[0].encode("a")[0]

    class Blanks(Driver):
        def _stands(self, control: object, at: int, draw: object) -> int:
            found = super()._stands(control, at, draw)  # type: ignore[arg-type]
            return {3: letter, 4: blank}.get(at, found)

    driver = Blanks(facts, belief=fits(2))
    result = driver.drive(infill(facts, "one", " two", SamplingParams(seed=1)))
    assert (result.text, result.holes[0].slack) == ("onea two", 1)
