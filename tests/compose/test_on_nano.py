"""The same plans on a real network: what the engine makes of pins, masks and readings.

The bundled model is trained again now and then, so nothing here depends on what it has learnt.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable

import pytest

from dgemma.compose.fill import Hole, fill
from dgemma.compose.questions import Choice, Predicate, Question
from dgemma.errors import EngineError
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from tests.support.nano import light, nano

pytestmark = pytest.mark.model

ALPHABETS = (
    "abc ,.\n",
    "Mira jumps over the",
    "äöü ßé",
    "▁<|turn>\x00",
    "日本語 🙂",
    "0123456789+=",
)


def random_text(draw: random.Random, most: int) -> str:
    letters = draw.choice(ALPHABETS) if draw.random() < 0.7 else "".join(ALPHABETS)
    if draw.random() < 0.2:
        letters = "".join(chr(draw.randrange(0x20, 0xD800)) for _ in range(20))
    return "".join(draw.choice(letters) for _ in range(draw.randrange(most + 1)))


def cheap(draw: random.Random) -> SamplingParams:
    return SamplingParams(
        seed=draw.getrandbits(64), max_steps=draw.randint(1, 4),
        canvas_length=draw.choice((None, None, "auto", 24, 50)),
    )  # fmt: skip


@pytest.mark.parametrize("model", [nano, light])
def test_pinned_text_returns(model: Callable[[], LLM], count: Callable[[int, int], int]) -> None:
    """Catches a pinned token that the network moved, an id that a mask forbids, a border that
    does not heal: each would be another text around the holes, or an assertion."""
    llm = model()
    for number in range(count(6, 500)):
        draw = random.Random(number)
        parts: list[str | Hole] = [random_text(draw, 60)]
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            most = draw.choice((0, 1, 2, 5, 9, 120))
            parts += [Hole(max_tokens=most), random_text(draw, draw.choice((5, 30, 120)))]
        done = llm.fill(parts, cheap(draw), search=draw.random() < 0.5)
        found = iter(done.holes)
        assert done.text == "".join(p if isinstance(p, str) else next(found).text for p in parts)
        for hole in done.holes:
            assert llm.facts.tokenizer.special_ids.isdisjoint(hole.token_ids)


@pytest.mark.parametrize("model", [nano, light])
def test_edits_stay_in_their_spans(
    model: Callable[[], LLM], count: Callable[[int, int], int]
) -> None:
    """Catches an edit that touches a byte outside its spans."""
    llm = model()
    for number in range(count(2, 500)):
        draw = random.Random(1000 + number)
        text = random_text(draw, count(80, 200))
        at = sorted(draw.randint(0, len(text)) for _ in range(draw.choice((2, 2, 4))))
        spans = list(zip(at[::2], at[1::2], strict=True))
        done = llm.edit(text, None, spans, draw.random(), cheap(draw))
        rebuilt, last = "", 0
        for change, (start, end) in zip(done.changes, spans, strict=True):
            rebuilt += text[last:start] + change.new
            last = end
        assert done.text == rebuilt + text[last:]


@pytest.mark.parametrize("model", [nano, light])
def test_a_stream_is_the_same_work(
    model: Callable[[], LLM], count: Callable[[int, int], int]
) -> None:
    """Catches a draft in which pinned text moves or a place is another, commits that are not the
    text, other tokens when drafts are shown, and requests that run on for a closed stream."""
    llm = model()
    for number in range(count(3, 200)):
        draw = random.Random(2000 + number)
        parts = ["Dear ", Hole(max_tokens=3), random_text(draw, 20), Hole(max_tokens=2), "."]
        params, before = cheap(draw), llm.counters()
        plain = llm.fill(parts, params)
        steps = llm.counters().steps - before.steps
        events = list(llm.stream_plan(fill(llm.facts, parts, params), search=number % 2 == 1))
        assert events[-1].outcome == plain
        assert llm.counters().steps == before.steps + 2 * steps
        for event in events:
            if event.event is None or not event.places or event.type == "status":
                continue
            ids, first, last = event.event.ids, *event.places
            assert (first.part, last.part) == (0, 1) and first.stop <= last.start
            around = ids[: first.start], ids[last.stop : last.stop + 1]
            held = (b"".join(map(llm.facts.tokenizer.token_bytes, one)) for one in around)
            assert b"Dear ".startswith(next(held)) and b".".startswith(next(held))
            if event.type == "commit":
                found = [ids[at.start : at.stop] for at in event.places]
                assert found == [hole.token_ids for hole in plain.holes]
    stream = llm.stream_plan(fill(llm.facts, parts, SamplingParams(max_steps=10_000)))
    for event in stream:
        if event.type == "frame":
            break
    stream.close()
    with pytest.raises(EngineError, match="closed before its end"):
        stream.result()
    assert llm.counters().running == 0


@pytest.mark.parametrize("how", ["dropped", "closed", "with"])
def test_a_plan_that_nobody_reads_ends(how: str, request: pytest.FixtureRequest) -> None:
    """Catches requests that run on after the loop was left and the stream is gone, or until the
    collector of garbage happens to come."""
    gc.disable()
    request.addfinalizer(gc.enable)
    llm = nano()
    endless = SamplingParams(seed=1, max_steps=10_000, stability_threshold=10_000)
    parts = ["Dear ", Hole(max_tokens=3), "."]
    before = llm.counters().ended_cancelled
    stream = llm.stream_plan(fill(llm.facts, parts, endless, search=False))
    if how == "with":
        with stream:
            next(event for event in stream if event.type == "frame")
    else:
        next(event for event in stream if event.type == "frame")
    if how == "closed":
        stream.close()
    elif how == "dropped":
        del stream
    until = time.monotonic() + 20
    while llm.counters().running and time.monotonic() < until:
        time.sleep(0.005)
    assert (llm.counters().running, llm.counters().ended_cancelled) == (0, before + 1)


def test_a_request_ends_with_its_block() -> None:
    """Catches a block that is left while its request runs on."""
    llm = nano()
    before = llm.counters().ended_cancelled
    with llm.stream("Hello", max_steps=10_000, stability_threshold=10_000) as stream:
        next(stream)
    assert stream.result().finish_reason == "cancelled"
    assert llm.counters().ended_cancelled == before + 1


def test_the_suffix_is_read() -> None:
    """Catches a suffix that is pinned but not attended to: the hole would not care about it."""
    llm, values = nano(), []
    for suffix in (" barks.", " meows."):
        done = llm.infill("The ", suffix, SamplingParams(seed=1), max_hole=3, search=False)
        assert llm.infill(
            "The ", suffix, SamplingParams(seed=1), max_hole=3, search=False
        ) == done  # fmt: skip
        values.append(done.outputs[0].scores[4].logprob)
    assert values[0] != values[1]


def test_revise_keeps_the_rest() -> None:
    """Catches a revision that moves a token of which the network was sure."""
    llm = nano()
    output = llm.generate("Total: 3 = 1 + 2", SamplingParams(seed=1, max_tokens=120, logprobs=0))
    for old in (output, llm.generate("One", SamplingParams(seed=2, max_tokens=40))):
        done = llm.revise(old, 0.9, SamplingParams(seed=3, max_steps=4))
        pairs = zip(old.token_ids, done.output.token_ids, strict=True)
        assert [at for at, (a, b) in enumerate(pairs) if a != b] == list(done.changed)
        assert set(done.changed) <= set(done.shaky)


def test_decisions_repeat() -> None:
    """Catches answers that depend on the other questions, on the order, or on chance."""
    llm = nano()
    questions: list[Question] = [
        Choice("feeling", "How is it?", ["positive", "negative", "neutral"]),
        Predicate("good", "Is it good?"),
    ]
    state = "Sentiment: Mira says the lamp is dreadful."
    done = llm.decide(state, questions, samples=3, seed=5)
    assert llm.decide(state, questions[::-1], samples=3, seed=5).answers == done.answers[::-1]
    for answer in done.answers:
        assert sum(p for _, p in answer.probabilities) == pytest.approx(1)
        assert answer.stderr is not None and answer.stderr > 0
    assert llm.decide(state, questions, samples=3, seed=6).answers != done.answers
    joint = llm.decide(state, questions, joint=True)
    assert [answer.name for answer in joint.answers] == ["feeling", "good"]
