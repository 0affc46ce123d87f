"""Filling holes: what stands around them, odd places, more than a canvas, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.compose.fill import Hole, fill, infill
from dgemma.compose.plan import MOST_TOGETHER
from dgemma.errors import ContextOverflow, EngineError, InvalidRequest
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from tests.support.plan_driver import Driver, facts_of, fits

LOOKALIKES = ("<turn|>", "<eos>", "<|channel>thought\n", "▁", "\u2581\u2581x", "<0x41>", "\x00")
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12), st.sampled_from(LOOKALIKES), st.text("the Mir():é\n 12", max_size=60)
    ),
    max_size=3,
).map("".join)
HOLES = st.builds(
    lambda least, more: Hole(min_tokens=least, max_tokens=None if more is None else least + more),
    st.integers(0, 3), st.one_of(st.none(), st.integers(0, 40)),
)  # fmt: skip


# -- what stands around holes ---------------------------------------------------------------------


@given(
    texts=st.lists(TEXTS, min_size=2, max_size=4), holes=st.lists(HOLES, min_size=3, max_size=3),
    which=st.integers(0, 2), width=st.integers(8, 64), seed=st.integers(0, 2**64 - 1),
    search=st.booleans(),
)  # fmt: skip
def test_texts_come_back(
    tokenizers: list[Tokenizer], texts: list[str], holes: list[Hole], which: int, width: int,
    seed: int, search: bool,
) -> None:  # fmt: skip
    """Catches any byte of the caller's text that is lost, doubled, or healed away."""
    facts = facts_of(tokenizers[which], width, 300)
    parts: list[str | Hole] = [texts[0]]
    for text, hole in zip(texts[1:], holes, strict=False):
        bounded = hole if search or hole.max_tokens is not None else Hole(max_tokens=5)
        parts += [bounded, text]
    driver = Driver(facts, seed % 1000)
    result = driver.drive(fill(facts, parts, SamplingParams(seed=seed), search=search))
    found = iter(result.holes)
    whole = "".join(p if isinstance(p, str) else next(found).text for p in parts)
    assert result.text == whole and next(found, None) is None
    assert all(len(requests) <= MOST_TOGETHER for requests in driver.rounds)
    for hole, part in zip(result.holes, parts[1::2], strict=True):
        assert isinstance(part, Hole)
        if part.max_tokens is not None:
            assert len(hole.token_ids) <= part.max_tokens + 2  # 2: tokens of healed borders
        assert (part.max_tokens == 0) <= (hole.text == "")


def test_look_alikes_stay_text(wordy: Tokenizer) -> None:
    """Catches text that ends the turn because it is written like a control token."""
    facts = facts_of(wordy, 64)
    driver = Driver(facts)
    result = driver.drive(infill(facts, "a <turn|> b ", "<eos>▁<|channel>", SamplingParams(seed=1)))
    assert result.text.startswith("a <turn|> b ") and result.text.endswith("<eos>▁<|channel>")
    for request in driver.asked:
        assert request.canvas is not None
        ids = request.canvas.ids
        content = ids[: ids.index(facts.end_id)]
        assert wordy.special_ids.isdisjoint(content)
        assert set(ids[len(content) + 1 :]) <= {facts.fill_id}
        assert all(wordy.special_ids.isdisjoint(allowed) for allowed in request.canvas.allowed)


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("", "behind"), ("before", ""), ("x" * 100, "y" * 100)]
)
def test_hole_anywhere(wordy: Tokenizer, prefix: str, suffix: str) -> None:
    """Catches a layout that needs text on both sides, or room for all of it."""
    facts = facts_of(wordy, 32)
    driver = Driver(facts)
    result = driver.drive(infill(facts, prefix, suffix, SamplingParams(seed=3)))
    assert result.text == prefix + result.holes[0].text + suffix
    assert result.holes[0].text
    control = driver.asked[0].canvas
    assert control is not None and (facts.end_id in control.ids) == (len(suffix) < 32)


def test_empty_hole_asks_nothing(wordy: Tokenizer) -> None:
    """Catches a request for a hole that must stay empty."""
    facts = facts_of(wordy)
    driver = Driver(facts)
    result = driver.drive(fill(facts, ["a", Hole(max_tokens=0), "b"]))
    assert (result.text, result.holes[0].text, driver.rounds) == ("ab", "", [])


def test_a_hole_may_stay_empty(wordy: Tokenizer) -> None:
    """Catches a `min_tokens` of 0 that is never honoured, or always."""
    facts = facts_of(wordy)
    for length in (0, 2):
        driver = Driver(facts, belief=fits(length))
        parts = ["one. ", Hole(min_tokens=0, max_tokens=4, allowed_token_ids=[300]), "two"]
        result = driver.drive(fill(facts, parts, SamplingParams(seed=1)))
        assert len(result.holes[0].token_ids) == length


def test_text_of_a_hole_is_never_an_error(tokenizers: list[Tokenizer]) -> None:
    """Catches an exception for bytes that are no UTF-8: half a character is shown as U+FFFD."""
    tokenizer = tokenizers[0]
    byte = tokenizer.id_of("<0xE2>")
    assert byte is not None
    facts = facts_of(tokenizer)
    driver = Driver(facts, prefer=frozenset({byte}))
    result = driver.drive(infill(facts, "a", "b", SamplingParams(seed=1)))
    assert set(result.holes[0].text) == {"\ufffd"}


# -- more than a canvas ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 16])
def test_least_tokens_on_a_narrow_canvas(tokenizers: list[Tokenizer], width: int) -> None:
    """Catches `min_tokens` that are given up because a narrower canvas has no room for them."""
    driver = Driver(facts_of(tokenizers[0], 64))
    params = SamplingParams(seed=1, canvas_length=width)
    result = driver.drive(fill(driver.facts, ["Dear ", Hole(min_tokens=14), "!"], params))
    assert len(result.holes[0].token_ids) >= 14


def test_hole_longer_than_the_canvas(tokenizers: list[Tokenizer]) -> None:
    """Catches a long hole that is cut to one canvas, or whose end does not see the suffix."""
    facts = facts_of(tokenizers[0], 32)
    driver = Driver(facts)
    params = SamplingParams(seed=1)
    parts = ["begin", Hole(max_tokens=100), "the end"]
    result = driver.drive(fill(facts, parts, params, search=False))
    assert len(result.holes[0].token_ids) == 100
    first, last = driver.asked[0], driver.asked[-1]
    assert len(driver.asked) > 3
    assert "the end" in driver.text(first) and first.canvas is not None
    assert not first.canvas.pinned
    assert last.canvas is not None
    ids = last.canvas.ids[: last.canvas.ids.index(facts.end_id)]
    assert ids[-6:] == tuple(tokenizers[0].encode("the end"))[-6:]


def test_long_hole_takes_what_it_needs(tokenizers: list[Tokenizer]) -> None:
    """Catches several canvases for a hole that one canvas fills best."""
    facts = facts_of(tokenizers[0], 32)
    driver = Driver(facts, belief=fits(5))
    result = driver.drive(infill(facts, "begin", "end", SamplingParams(seed=1), max_hole=100))
    assert len(result.holes[0].token_ids) == 5
    driver = Driver(facts, belief=fits(1000))
    result = driver.drive(infill(facts, "begin", "end", SamplingParams(seed=1), max_hole=100))
    assert len(result.holes[0].token_ids) > 32


def test_windows_see_each_other(tokenizers: list[Tokenizer]) -> None:
    """Catches a second window that does not see what was written in the first."""
    facts = facts_of(tokenizers[0], 32)
    driver = Driver(facts)
    parts = ["start ", Hole(max_tokens=4), "-" * 60, Hole(max_tokens=4), " stop"]
    result = driver.drive(fill(facts, parts, SamplingParams(seed=1), context="Be brief."))
    first, last = driver.asked[0], driver.asked[-1]
    assert "stop" in driver.text(first) and "Be brief." in driver.text(first)
    begun = "start " + result.holes[0].text + "-" * 40
    assert begun in driver.text(last)
    assert result.text.endswith(result.holes[1].text + " stop")


def test_narrow_canvas(tokenizers: list[Tokenizer]) -> None:
    """Catches a canvas length that is accepted and ignored."""
    facts = facts_of(tokenizers[0], 128)
    for asked, width in ((40, 40), ("auto", 32), (None, 128)):
        driver = Driver(facts)
        params = SamplingParams(seed=1, canvas_length=asked)  # type: ignore[arg-type]
        driver.drive(infill(facts, "a", "b", params, max_hole=8))
        assert {request.params.canvas_length for request in driver.asked} == {width}


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts", [[], "text", ["a"], ["a", 5], ["a", Hole(allowed_token_ids=[0]), "b"]]
)
def test_bad_parts(wordy: Tokenizer, parts: list[str | Hole]) -> None:
    """Catches nonsense that is run instead of refused: no hole, no text, a control token."""
    facts = facts_of(wordy)
    with pytest.raises(InvalidRequest):
        Driver(facts).drive(fill(facts, parts))


@pytest.mark.parametrize(
    "values", [{"max_tokens": -1}, {"min_tokens": None}, {"max_tokens": 2, "min_tokens": 3},
               {"allowed_token_ids": []}, {"allowed_token_ids": ["a"]},
               {"allowed_token_ids": [300.0]}, {"max_tokens": True}],
)  # fmt: skip
def test_bad_holes(values: dict[str, object]) -> None:
    """Catches a hole that cannot be filled."""
    with pytest.raises(InvalidRequest):
        Hole(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params", [{"stop": ["x"]}, {"bad_words": ["x"]}, {"thinking_budget": 3}, {"min_tokens": 3},
               {"regex": "a+"}, {"canvas_length": 4}, {"canvas_length": 999},
               {"stable_prefix": True}],
)  # fmt: skip
def test_bad_parameters(wordy: Tokenizer, params: dict[str, object]) -> None:
    """Catches a parameter that is accepted and ignored."""
    facts = facts_of(wordy)
    with pytest.raises(InvalidRequest):
        Driver(facts).drive(infill(facts, "a", "b", SamplingParams(**params)))  # type: ignore[arg-type]


def test_allowed_ids_of_all_holes(tokenizers: list[Tokenizer]) -> None:
    """Catches ids of the parameters that bar the text around a hole, or do not hold in it."""
    tokenizer = tokenizers[0]
    some, other = tokenizer.encode("ab")
    driver = Driver(facts_of(tokenizer))
    own = Hole(max_tokens=2, allowed_token_ids=[other])
    params = SamplingParams(seed=1, max_tokens=3, allowed_token_ids=[some])
    result = driver.drive(fill(driver.facts, ["x", Hole(), "y", own], params, search=False))
    assert result.text == "xaaaybb"


def test_least_tokens_against_the_most_of_all(wordy: Tokenizer) -> None:
    """Catches a hole that is given more than `max_tokens` because its own `min_tokens` say so."""
    with pytest.raises(InvalidRequest, match="max_tokens 5 is below"):
        driver = Driver(facts_of(wordy))
        driver.drive(fill(driver.facts, ["a", Hole(min_tokens=10)], SamplingParams(max_tokens=5)))


def test_context_too_long(wordy: Tokenizer) -> None:
    """Catches a message that overflows the context; a long prefix only loses its beginning."""
    facts = facts_of(wordy, 32, 128)
    with pytest.raises(ContextOverflow):
        Driver(facts).drive(infill(facts, "a", "b", context="z" * 200))
    result = Driver(facts).drive(infill(facts, "a" * 500, "b"))
    assert result.text.startswith("a" * 500)


@pytest.mark.parametrize("number", [0, 3])
def test_a_failed_request_ends_the_plan(wordy: Tokenizer, number: int) -> None:
    """Catches a plan that takes an error for an answer."""
    facts = facts_of(wordy)
    plan = infill(facts, "a", "b", SamplingParams(seed=1))
    with pytest.raises(EngineError, match="not finite"):
        Driver(facts, fail=number).drive(plan)
    with pytest.raises(StopIteration):
        next(plan)


def test_same_seed_same_text(wordy: Tokenizer) -> None:
    """Catches candidates that do not share the request's seed, and a seed that is not reported."""
    facts = facts_of(wordy)
    driver = Driver(facts)
    result = driver.drive(infill(facts, "a", "b"))
    assert {request.params.seed for request in driver.asked} == {result.seed}
    again = Driver(facts).drive(infill(facts, "a", "b", SamplingParams(seed=result.seed)))
    assert again == result
