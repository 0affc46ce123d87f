"""Grammars of requests: compiled once, and nobody waits for another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from dgemma.constrain.cache import KEPT, GrammarCache
from dgemma.constrain.matcher import Grammar
from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer

LONG = 60
"""Seconds after which a thread that hangs is given up."""


class Held(GrammarCache):
    """Grammars of which some take until they are let go; counts what is made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, sorted(MarkerIds.of(tokenizer).ends))
        self.made: list[Any] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def _make(self, mode: str, what: Any) -> Grammar:
        self.made.append(what)
        if what in ("slow", "slow("):
            self.begun.set()
            assert self.go.wait(LONG)
        return super()._make(mode, what)

    def takes(self, regex: str, tokenizer: Tokenizer, text: str) -> bool:
        """Whether a regex's language begins with a text."""
        found = self.matcher_for(SamplingParams(regex=regex))
        assert found is not None and found[1] == "regex"
        ids = tokenizer.encode(text)
        return found[0].accept(ids) == len(ids)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.mark.fault("R H2")
def test_another_owners_grammar_is_not_used(nano: Tokenizer) -> None:
    """Catches a key that times a schema to learn whether another key has sent it."""
    grammars = Held(nano)
    for owner in "abab":
        assert grammars.matcher_for(SamplingParams(regex="secret"), owner=owner) is not None
    assert grammars.made == ["secret", "secret"]


def test_another_language_does_not_wait(nano: Tokenizer, pool: ThreadPoolExecutor) -> None:
    """Catches one lock around all compiling: a slow schema would stop every other request."""
    grammars = Held(nano)
    slow = pool.submit(grammars.takes, "slow", nano, "slow")
    try:
        assert grammars.begun.wait(LONG)
        assert pool.submit(grammars.takes, "quick", nano, "quick").result(LONG)
        assert not slow.done()
    finally:
        grammars.go.set()
    assert slow.result(LONG)


@pytest.mark.parametrize("regex", ["slow", "slow("])
def test_a_language_is_made_once(regex: str, nano: Tokenizer, pool: ThreadPoolExecutor) -> None:
    """Catches equal requests that compile beside one another, and a failure only one hears of.

    A failure is told to all who wait, and the next request tries anew.
    """
    grammars = Held(nano)
    first = pool.submit(grammars.takes, regex, nano, "slow")
    assert grammars.begun.wait(LONG)
    asked: list[Future[bool]] = [pool.submit(grammars.takes, regex, nano, "slow") for _ in range(2)]
    grammars.go.set()
    good = regex == "slow"
    for waiting in (first, *asked):
        if good:
            assert waiting.result(LONG)
        else:
            error = waiting.exception(LONG)
            assert isinstance(error, InvalidRequest) and error.field == "regex"
    if good:
        assert grammars.takes(regex, nano, "slow") and grammars.made == ["slow"]
    count = len(grammars.made)
    with pytest.raises(InvalidRequest):
        grammars.takes("slow(", nano, "slow")
    assert len(grammars.made) == count + 1


def test_the_newest_languages_are_kept(nano: Tokenizer) -> None:
    """Catches a store without a bound, and one that drops what was asked for last."""
    grammars = Held(nano)
    for number in range(KEPT + 1):
        grammars.takes(f"a{number}", nano, "a")
        grammars.takes("kept", nano, "k")
    assert grammars.made.count("kept") == 1 and len(grammars.made) == KEPT + 2
    grammars.takes("a0", nano, "a")
    assert grammars.made.count("a0") == 2
