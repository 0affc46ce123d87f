"""Editing spans of a text, revising shaky tokens, repairing what breaks a language."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.compose.edit import edit
from dgemma.compose.revise import repair, revise
from dgemma.errors import EngineError, InvalidRequest
from dgemma.params import SamplingParams
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Constraint, Output, Request, TokenScore, Verdict
from tests.support.plan_driver import Driver, facts_of

TEXTS = st.one_of(
    st.text(min_size=1, max_size=150), st.text("the Mir():é\n 12▁<|>", min_size=1, max_size=300)
)
SEED = SamplingParams(seed=1)


@given(
    text=TEXTS, cuts=st.lists(st.floats(0, 1), min_size=2, max_size=6), which=st.integers(0, 2),
    width=st.integers(8, 64), seed=st.integers(0, 2**64 - 1), strength=st.floats(0, 1),
    instruction=st.sampled_from((None, "Make it shorter.")),
)  # fmt: skip
def test_outside_the_spans_nothing_changes(
    tokenizers: list[Tokenizer], text: str, cuts: list[float], which: int, width: int, seed: int,
    strength: float, instruction: str | None,
) -> None:  # fmt: skip
    """Catches an edit that touches a byte outside its spans, whatever the text and the canvas."""
    facts = facts_of(tokenizers[which], width, 400)
    at = sorted(round(cut * len(text)) for cut in cuts[: len(cuts) // 2 * 2])
    spans = list(zip(at[::2], at[1::2], strict=True))
    params = SamplingParams(seed=seed)
    plan = edit(facts, text, instruction, spans, strength, params)
    result = Driver(facts, seed % 1000).drive(plan)
    kept, last = "", 0
    for change, (start, end) in zip(result.changes, spans, strict=True):
        assert (change.start, change.end, change.old) == (start, end, text[start:end])
        kept += text[last:start] + change.new
        last = end
    assert result.text == kept + text[last:]
    assert strength > 0 or result.text == text


def test_a_span_begins_as_it_is(tokenizers: list[Tokenizer]) -> None:
    """Catches an edit that begins with noise alone, or whose seeds stand in the wrong place."""
    facts = facts_of(tokenizers[0], 64)
    driver = Driver(facts)
    driver.drive(edit(facts, "one two, three", None, [(4, 7)], 0.4, SEED))
    lengths = set()
    for request in driver.asked:
        control = request.canvas
        assert control is not None and control.strength == 0.4
        free = [at for at, mask in enumerate(control.masks) if mask >= 0]
        lengths.add(len(free))
        old = [i for at, i in enumerate(control.ids) if at in free and i >= 0]
        assert tokenizers[0].decode(old) == "two"[: len(free)]
    assert lengths == {1, 2, 3, 4, 5, 6}  # the old length and its neighbours


def test_seeds_are_the_words_own_tokens(wordy: Tokenizer) -> None:
    """Catches a span that begins inside a token and is seeded with its letters instead."""
    facts = facts_of(wordy, 64)
    driver = Driver(facts)
    driver.drive(edit(facts, "Dear Mira, hi", None, [(5, 9)], 0.4, SEED))
    (mira,) = wordy.encode(" Mira")
    assert any(r.canvas is not None and mira in r.canvas.ids for r in driver.asked)


def test_whole_text_window_by_window(tokenizers: list[Tokenizer]) -> None:
    """Catches a long text that is edited in part only, or with windows blind to each other."""
    facts = facts_of(tokenizers[0], 32, 800)
    text = "".join(f"line {number} of it.\n" for number in range(12))
    driver = Driver(facts)
    result = driver.drive(edit(facts, text, "Say it in French.", None, 1.0, SEED))
    assert len(result.changes) == 1 and result.changes[0].old == text
    assert result.text == result.changes[0].new != text
    assert all("Say it in French." in driver.text(request) for request in driver.asked)
    assert all("line 0 of it." in driver.text(request) for request in driver.asked)
    head = driver.text(driver.asked[-1])[-20:]
    assert head in result.text and len(driver.rounds) > 10


def test_later_spans_see_earlier_edits(tokenizers: list[Tokenizer]) -> None:
    """Catches a second window that is encoded from the old text."""
    facts = facts_of(tokenizers[0], 32, 800)
    text = "first" + "-" * 80 + "second"
    driver = Driver(facts)
    result = driver.drive(edit(facts, text, None, [(0, 5), (85, 91)], 1.0, SEED))
    assert result.changes[0].new + "-" * 40 in driver.text(driver.asked[-1])
    assert "second" in driver.text(driver.asked[0])


def test_strength_nothing_changes_nothing(tokenizers: list[Tokenizer]) -> None:
    """Catches a strength of 0 that costs requests."""
    facts = facts_of(tokenizers[0])
    driver = Driver(facts)
    assert driver.drive(edit(facts, "one two", None, [(0, 3)], 0.0)).text == "one two"
    assert not driver.rounds


@pytest.mark.parametrize(
    "spans", [[(3, 2)], [(0, 99)], [(-1, 2)], [(0, 3), (2, 4)], [(4, 5), (0, 1)], [], [(1, 2, 3)],
              [(0.0, 1.0)], None],
)  # fmt: skip
def test_bad_spans(tokenizers: list[Tokenizer], spans: list[tuple[int, int]] | None) -> None:
    """Catches spans that would silently edit something else; no span needs an instruction."""
    facts = facts_of(tokenizers[0])
    with pytest.raises(InvalidRequest):
        Driver(facts).drive(edit(facts, "one two", None, spans))


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_bad_strength(tokenizers: list[Tokenizer], strength: float) -> None:
    """Catches a strength that means nothing."""
    facts = facts_of(tokenizers[0])
    with pytest.raises(InvalidRequest, match="strength"):
        Driver(facts).drive(edit(facts, "one", None, [(0, 1)], strength))
    with pytest.raises(InvalidRequest, match="strength"):
        Driver(facts).drive(repair(facts, "one", SamplingParams(regex="a"), strength))


# -- revise ---------------------------------------------------------------------------------------


def answer(tokenizer: Tokenizer, text: str, doubts: Sequence[int] = (), **values: object) -> Output:
    """An answer that is unsure at some positions."""
    ids = tuple(tokenizer.encode(text))
    scores = tuple(
        TokenScore(token_id=i, logprob=-2.0 if at in doubts else -0.01) for at, i in enumerate(ids)
    )
    out = Output(text=text, token_ids=ids, prompt_ids=(2, 300), scores=scores)
    return replace(out, **values)  # type: ignore[arg-type]


def test_only_shaky_tokens_change(tokenizers: list[Tokenizer]) -> None:
    """Catches a revision that moves a token of which the model was sure."""
    tokenizer = tokenizers[0]
    facts = facts_of(tokenizer, 16)
    old = answer(tokenizer, "a text of more than one canvas", [1, 5, 20])
    driver = Driver(facts)
    done = driver.drive(revise(facts, old, 0.5, SEED))
    assert done.shaky == (1, 5, 20) and set(done.changed) <= {1, 5, 20} and done.changed
    assert len(driver.asked) == 2  # no reading: the scores were there
    for at, (before, after) in enumerate(zip(old.token_ids, done.output.token_ids, strict=True)):
        assert before == after or at in done.changed
    assert done.output.text == tokenizer.decode(done.output.token_ids)
    first, second = driver.asked
    assert second.token_ids == (2, 300, *done.output.token_ids[:16])
    assert second.canvas is not None and facts.end_id in second.canvas.ids
    assert first.canvas is not None and facts.end_id not in first.canvas.ids


def test_scores_are_read_where_there_are_none(tokenizers: list[Tokenizer]) -> None:
    """Catches a revision that needs scores, or that reads the argmax's instead of the token's."""
    tokenizer = tokenizers[0]
    facts = facts_of(tokenizer, 16)
    old = replace(answer(tokenizer, "a text of more than one canvas"), scores=())

    def belief(request: Request, ids: Sequence[int]) -> list[float]:
        return [-3.0 if i == old.token_ids[3] else 0.0 for i in ids]

    driver = Driver(facts, belief=belief)
    done = driver.drive(revise(facts, old, 0.5, SEED))
    expected = tuple(at for at, i in enumerate(old.token_ids) if i == old.token_ids[3])
    assert done.shaky == expected
    reading = driver.rounds[0]
    assert len(reading) == 2
    for request in reading:
        assert request.canvas is not None and request.canvas.read_only
        assert set(range(14)) <= set(request.canvas.pinned)


def test_nothing_shaky_costs_nothing(tokenizers: list[Tokenizer]) -> None:
    """Catches a canvas that is denoised although every token is sure."""
    facts = facts_of(tokenizers[0], 16)
    old = answer(tokenizers[0], "sure of it")
    driver = Driver(facts)
    done = driver.drive(revise(facts, old))
    assert not driver.rounds and done.output.text == old.text and not done.shaky


def test_a_thought_stays_a_thought(tokenizers: list[Tokenizer]) -> None:
    """Catches a revised text that holds the thought, or control tokens that were revised."""
    tokenizer = tokenizers[2]
    ids = tokenizer.encode("<|channel>thought\nhm\n<channel|>the text", control=True)
    scores = tuple(TokenScore(token_id=i, logprob=-9.0) for i in ids)
    old = Output(
        text="the text", thinking="hm", token_ids=tuple(ids), prompt_ids=(2,), scores=scores
    )
    done = Driver(facts_of(tokenizer, 32)).drive(revise(facts_of(tokenizer, 32), old, 0.5, SEED))
    special = {at for at, i in enumerate(ids) if i in tokenizer.special_ids}
    assert special and not special & set(done.shaky)
    closed = done.output.token_ids.index(ids[max(special)])
    assert done.output.text == tokenizer.decode(done.output.token_ids[closed + 1 :])


@pytest.mark.parametrize(
    ("values", "below"), [({"prompt_ids": ()}, 0.5), ({"finish_reason": "error"}, 0.5), ({}, 1.5)]
)
def test_bad_revision(tokenizers: list[Tokenizer], values: dict[str, object], below: float) -> None:
    """Catches an answer that cannot be revised: no prompt, an error; a bound that is none."""
    facts = facts_of(tokenizers[0])
    old = answer(tokenizers[0], "text", **values)
    with pytest.raises(InvalidRequest):
        Driver(facts).drive(revise(facts, old, below))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"constraint": Constraint(mode="regex", complete=True)}, "another seed"),
        ({"stopped_by": "xt"}, "without stop"),
    ],
)
def test_what_a_revision_would_break(
    tokenizers: list[Tokenizer], values: dict[str, object], said: str
) -> None:
    """Catches a revised answer that says it is whole and has left its language, or its cut."""
    facts = facts_of(tokenizers[0])
    with pytest.raises(InvalidRequest, match=said):
        Driver(facts).drive(revise(facts, answer(tokenizers[0], "text", **values), 0.5))


@pytest.mark.parametrize("text", ["unbroken", "abc" * 40])
def test_what_fits_is_not_repaired(tokenizers: list[Tokenizer], text: str) -> None:
    """Catches a text that is written anew though nothing is wrong with it."""
    facts = facts_of(tokenizers[0], 32)
    driver = Driver(facts)
    output = driver.drive(repair(facts, text, SamplingParams(seed=7, regex="[a-z]+")))
    assert not driver.asked and (output.text, output.seed) == (text, 7)
    assert output.constraint == Constraint(mode="regex", complete=True)
    assert output.usage.steps == 0 and facts.tokenizer.decode(output.token_ids) == text
    driver.drive(repair(facts, text, SamplingParams(seed=7, max_tokens=2, regex="[a-z]+")))
    assert driver.asked  # it has to be shorter


@pytest.mark.parametrize("wrong", ["0.5", True, None])
def test_no_number(tokenizers: list[Tokenizer], wrong: Any) -> None:
    """Catches a traceback where one clear error belongs."""
    facts = facts_of(tokenizers[0])
    plans = (
        edit(facts, "one", None, [(0, 1)], wrong),
        revise(facts, answer(tokenizers[0], "text"), wrong),
        repair(facts, "one", SamplingParams(regex="a"), wrong),
        edit(facts, "one", None, cast(Any, (0, 2))),
        edit(facts, "one", None, [(0, 1)], 0.5, cast(Any, ["seed"])),
        revise(facts, cast(Any, [1])),
        repair(facts, "one", cast(Any, None)),
    )
    for plan in plans:
        with pytest.raises(InvalidRequest):
            Driver(facts).drive(plan)


def test_repair(tokenizers: list[Tokenizer]) -> None:
    """Catches a repair that forgets the language, the text, or pins what must give way."""
    facts = facts_of(tokenizers[0], 32)
    driver = Driver(facts)
    params = SamplingParams(seed=1, regex="[a-z]+")
    driver.drive(repair(facts, "broken7", params, 0.1))
    (request,) = driver.asked
    assert request.params == replace(params, max_tokens=32) and "broken7" in driver.text(request)
    control = request.canvas
    assert control is not None and (control.pinned, control.strength) == (tuple(range(6)), 0.1)
    assert control.ids[:8] == (*tokenizers[0].encode("broken7"), facts.end_id)
    with pytest.raises(InvalidRequest, match="constraint"):
        Driver(facts).drive(repair(facts, "text", SamplingParams()))
    with pytest.raises(EngineError):
        Driver(facts, fail=0).drive(repair(facts, "text7", params))


class Repairer(Driver):
    """Repaired texts that a test writes down."""

    answers: tuple[Output, ...] = ()

    def output(self, request: Request, count: int) -> Output:
        return self.answers[count]


def test_the_likeliest_repair_that_fits(tokenizers: list[Tokenizer]) -> None:
    """Catches the first of several repairs, the likeliest that does not fit, and one seed for all;
    and an error where none fits."""
    driver = Repairer(facts_of(tokenizers[0], 32))

    def repaired(text: str, logprob: float, complete: bool) -> Output:
        return Output(text=text, token_ids=(300,), verdict=Verdict(logprobs=(logprob,)),
                      constraint=Constraint(mode="regex", complete=complete))  # fmt: skip

    params = SamplingParams(seed=7, regex="[a-z]+")
    driver.answers = (
        repaired("poor", -2.0, True), repaired("cut", -0.1, False), repaired("good", -1.0, True),
        repaired("cut", -2.0, False), repaired("cut less", -1.0, False),
    )  # fmt: skip
    output = driver.drive(repair(driver.facts, "4", params, best_of=3))
    assert (output.text, output.verdict) == ("good", None)
    assert [request.params.seed for request in driver.asked] == [7, 8, 9]
    assert all(request.canvas is not None for request in driver.asked)
    assert driver.drive(repair(driver.facts, "4", params, best_of=2)).text == "cut less"
    for wrong in (0, True, "2"):
        with pytest.raises(InvalidRequest, match="best_of must be"):
            driver.drive(repair(driver.facts, "4", params, best_of=cast(Any, wrong)))


@pytest.mark.parametrize("last", [" ends", "!"])
def test_a_revision_has_no_stale_verdict(tokenizers: list[Tokenizer], last: str) -> None:
    """Catches the verdict on the old text at the new one, and a verdict that is asked for and
    never given."""
    facts = facts_of(tokenizers[0])
    verdict = Verdict(logprobs=(-1.0,))
    old = answer(tokenizers[0], f"some text that{last}", verdict=verdict)
    same = Driver(facts).drive(revise(facts, old, 0.0))
    assert not same.changed and same.output.verdict == verdict
    new = Driver(facts).drive(revise(facts, old, 1.0))
    assert new.changed and new.output.verdict is None
    with pytest.raises(InvalidRequest, match="verdict"):
        Driver(facts).drive(revise(facts, old, 0.5, SamplingParams(verdict=True)))
