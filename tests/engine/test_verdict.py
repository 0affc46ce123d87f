"""Verdicts: the encoder reads a finished canvas, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Values
from dataclasses import replace
from functools import partial

import pytest

from dgemma.engine.engine import Engine
from dgemma.engine.sequence import Sequence
from dgemma.params import SamplingParams
from dgemma.types import Output, Request, Verdict
from tests.support.engine_checks import check_scheduler
from tests.support.engines import last, run_preempted
from tests.support.nano import nano, nano_engine, random_request

pytestmark = pytest.mark.model

ROUNDING = 1e-3
"""The reading of a canvas and that of a whole prompt are cut in other places."""


def asked(request: Request) -> Request:
    """The same with a verdict."""
    return replace(request, params=replace(request.params, verdict=True))


def scored(engine: Engine, output: Output) -> list[float]:
    """What a request of mode "score" says of an answer."""
    first = len(output.prompt_ids)
    ids = (*output.prompt_ids, *output.token_ids)
    request = Request(token_ids=ids, mode="score", score_from=first)
    return [score.logprob for score in last(engine.submit(request)).scores]


def same_but_for_the_verdict(output: Output, plain: Output) -> None:
    """Both answers, their costs and their scores are equal."""
    assert output.verdict is not None and plain.verdict is None
    assert replace(output, verdict=None) == plain


def agrees(verdict: Verdict, expected: Values[float]) -> None:
    """The log-probabilities are those of the score; one more is that of the end."""
    got = verdict.logprobs
    assert len(got) - len(expected) in (0, 1)
    assert list(got[: len(expected)]) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("endless", [False, True])
def test_the_verdict_is_the_score_and_tokens_stay(
    endless: bool, count: Callable[[int, int], int]
) -> None:
    """A reading that changes the answer, loses keys, or is of other tokens."""
    engine = nano_engine(endless=endless)
    numbers = range(3, 13, 3) if endless else range(0, 12, count(2, 1))
    requests = [random_request(number) for number in numbers]
    plain = [last(engine.submit(request)) for request in requests]
    streams = [engine.submit(asked(request)) for request in requests]
    for stream, expected in zip(streams, plain, strict=True):
        output = last(stream)
        same_but_for_the_verdict(output, expected)
        assert output.verdict is not None
        if output.token_ids:
            agrees(output.verdict, scored(engine, output))
        assert output.verdict.steps == output.usage.steps
    check_scheduler(engine.scheduler)
    assert engine.running == 0


def test_disagreements_are_where_the_encoder_would_write_something_else() -> None:
    """A place that is off by one."""
    llm = nano()
    messages = [{"role": "user", "content": "Write the word kettle."}]
    output = llm.chat(messages, seed=3, verdict=True)
    verdict = output.verdict
    assert verdict is not None
    for place, token in enumerate(output.token_ids):
        prompt = (*output.prompt_ids, *output.token_ids[:place])
        request = Request(token_ids=prompt, mode="autoregressive",
                          params=SamplingParams(max_tokens=1))  # fmt: skip
        first = llm.submit(request).result().token_ids
        assert (first != (token,)) == (place in verdict.disagreements)


def test_commits_carry_the_verdict_of_their_canvas() -> None:
    """A verdict that comes with another commit, or only at the end."""
    engine = nano_engine(endless=True)
    request = asked(random_request(3))
    request = replace(request, params=replace(request.params, max_tokens=250, stop=None))
    events = list(engine.submit(request))
    commits = [event for event in events if event.type == "commit"]
    assert len(commits) >= 2 and all(event.verdict is not None for event in commits)
    parts = [event.verdict for event in commits if event.verdict is not None]
    output = events[-1].output
    assert output is not None and output.verdict == Verdict.joined(parts)
    assert [len(part.logprobs) for part in parts] == [len(event.ids) for event in commits]


def test_a_grammar_and_a_settled_prefix() -> None:
    """A canvas that is repaired, or emitted in parts, is read before it is whole."""
    llm = nano()
    messages = [{"role": "user", "content": "JSON: Mira Kovar is 31 years old."}]
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    for params in (SamplingParams(json_schema=schema), SamplingParams(stable_prefix=True)):
        for seed in range(3):
            params = replace(params, seed=seed)
            plain = llm.chat(messages, params)
            output = llm.chat(messages, replace(params, verdict=True))
            same_but_for_the_verdict(output, plain)
            assert output.verdict is not None
            agrees(output.verdict, scored(llm.engine, output))


def test_preempted_while_it_is_read(count: Callable[[int, int], int]) -> None:
    """A canvas that waits for its verdict loses its pages: what it was is lost, or read twice."""
    roomy = nano_engine(endless=True)
    request = replace(random_request(6), priority=0)
    request = asked(replace(request, params=replace(request.params, max_tokens=250, stop=None)))
    expected = last(roomy.submit(request))
    read = list[bool]()

    def when(number: int, seq: Sequence, passes: int) -> bool:
        chosen = number == passes or (bool(seq.proposed) and number % 2 == 1)
        read.append(chosen and bool(seq.proposed))
        return chosen

    for passes in range(0, 40, count(6, 3)):
        engine = nano_engine(endless=True)
        assert run_preempted(engine, request, partial(when, passes=passes))[1] == expected
    assert sum(read) > count(5, 10)
