"""Structured output on models that know nothing: what is finished is valid in every case.

Random weights write noise, so everything here is the doing of the constraint. Each schema, regex
and grammar runs with several seeds, all together on one engine.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jsonschema
import pytest

from dgemma.constrain import guidance
from dgemma.constrain import matcher as grammar_matcher
from dgemma.constrain.cache import GrammarCache
from dgemma.constrain.sources import READY_MADE, make_grammar
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.engine.searches import BUDGET, SearchQueue
from dgemma.engine.worker import Worker
from dgemma.errors import InvalidRequest
from dgemma.matcher import Matcher
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from dgemma.types import CanvasControl, Output, Request
from tests.support.engines import EndingFrontend, last, submit_kept
from tests.support.nano import by_reference, nano, nano_engine
from tests.support.random_answers import ROOM, answers, check_ends, random_engine
from tests.support.schemas import GRAMMARS, REGEXES, SCHEMAS
from tests.support.tokenizers import gemma_tokenizer

pytestmark = pytest.mark.model


def some(names: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Every n-th of them, `count` in all."""
    keys = list(names)
    chosen = keys[:: max(1, len(keys) // count)][:count] if count < len(keys) else keys
    return {key: names[key] for key in chosen}


def assert_valid_json(found: list[tuple[str, Output, str]]) -> None:
    """All that are finished parse and validate."""
    for name, output, text in found:
        if output.finish_reason == "stop":
            validator = jsonschema.Draft202012Validator(SCHEMAS[name])
            errors = list(validator.iter_errors(json.loads(text)))
            assert not errors, (name, text, errors[:1])


def test_schemas(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """An object that stays open, a number out of bounds, a key that is missing, a string cut."""
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    chosen = some(SCHEMAS, count(16, len(SCHEMAS)))
    cases = {name: {"json_schema": schema} for name, schema in chosen.items()}
    found = answers(random_engine(1024, (1, 106, 50)), tokenizer, cases, count(1, 3))
    assert_valid_json(found)
    share = check_ends(found)
    record("random weights: JSON schemas", len(cases))
    record("random weights: of their answers finished in 1,024 tokens", share, limit=">= 0.9")
    assert share >= 0.9


def test_little_room(count: Callable[[int, int], int]) -> None:
    """A text that is cut where the room ends and still called whole; an answer over its room."""
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    cases = {n: {"json_schema": s} for n, s in some(SCHEMAS, count(8, len(SCHEMAS))).items()}
    for room in (1, 7, 33):
        found = answers(random_engine(1024, (1,), 16), tokenizer, cases, 1, room)
        check_ends(found)
        assert_valid_json(found)
        assert all(len(output.token_ids) <= room for _, output, _ in found)


def test_regexes(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """A text that the expression does not match as a whole."""
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    chosen = some(REGEXES, count(8, len(REGEXES)))
    cases = {name: {"regex": regex} for name, regex in chosen.items()}
    found = answers(random_engine(1024, (1, 106, 50)), tokenizer, cases, count(1, 3))
    for name, output, text in found:
        if output.finish_reason == "stop":
            assert re.fullmatch(REGEXES[name], text, re.DOTALL), (name, text)
    share = check_ends(found)
    record("random weights: regular expressions", len(cases))
    record("random weights: of their answers finished in 1,024 tokens", share, limit=">= 0.9")
    assert share >= 0.9


def test_grammars(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """A text outside its grammar, judged by a fresh walk over the text as it would be encoded."""
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    ready = {name: name for name in READY_MADE}
    cases = {name: {"grammar": text} for name, text in {**GRAMMARS, **ready}.items()}
    found = answers(random_engine(1024, (1, 106, 50)), tokenizer, cases, count(1, 3))
    for name, output, text in found:
        if output.finish_reason == "stop":
            judge = make_grammar("grammar", cases[name]["grammar"], tokenizer, (1,)).matcher()
            ids = tokenizer.encode(text)
            assert judge.accept(ids) == len(ids) and judge.accepting, (name, text)
    share = check_ends(found)
    record("random weights: grammars", len(cases))
    record("random weights: of their answers finished in 1,024 tokens", share, limit=">= 0.9")
    assert share >= 0.9


def test_real_vocabulary(count: Callable[[int, int], int], record: Callable[..., None]) -> None:
    """Tokens that hold several letters of the grammar at once, in 262,144 ids."""
    tokenizer = gemma_tokenizer()
    chosen = some(SCHEMAS, count(2, 30))
    cases = {name: {"json_schema": schema} for name, schema in chosen.items()}
    engine, room = random_engine(tokenizer.vocab_size, (1, 106, 50)), count(256, ROOM)
    found = answers(engine, tokenizer, cases, 1, room)
    assert_valid_json(found)
    share = check_ends(found)
    record("262,144 ids, random weights: of answers to schemas finished", share, limit=">= 0.9")
    assert share >= 0.9


def test_engine_and_reference_agree(count: Callable[[int, int], int]) -> None:
    """A repaired canvas, or one that goes on, is not the one of the reference loop."""
    llm = nano()
    assert llm.tokenizer is not None
    grammars: list[dict[str, Any]] = [{"json_schema": s} for s in list(SCHEMAS.values())[::7]]
    grammars += [{"regex": r} for r in list(REGEXES.values())[::9]]
    grammars += [{"choices": ["left", "right", "straight on"]}, {"bad_words": ["e", "i"]}]
    engine = nano_engine()
    engine.frontend = llm.frontend
    for number, language in enumerate(grammars[:: count(4, 1)]):
        params = SamplingParams(seed=number, max_steps=6, max_tokens=150, **language)
        ids = tuple(llm.chat_ids([{"role": "user", "content": "Hello!"}], None, False))
        request = Request(token_ids=ids, params=params)
        found = llm.frontend.matcher(request)
        assert found is not None
        neighbours = [engine.submit(Request(token_ids=ids)) for _ in range(3)]
        output = [e.output for e in engine.submit(request)][-1]
        for stream in neighbours:
            stream.close()
        made = by_reference(engine, request, ConstrainedAnswer(*found))
        assert output is not None and output.token_ids == made.token_ids, language
        assert output.finish_reason == made.finish_reason
        assert output.usage.steps == len(made.trace)


def test_pinned_beginning() -> None:
    """A beginning that the caller pins is not part of what the language is walked with."""
    llm = nano()
    assert llm.tokenizer is not None
    params = SamplingParams(seed=1, max_tokens=90, regex="(yes|no), [a-z]{3}")
    prompt = tuple(llm.chat_ids([{"role": "user", "content": "Hello!"}], None, False))

    def ask(text: str) -> str:
        ids = tuple(llm.tokenizer.encode(text)) if llm.tokenizer else ()
        control = CanvasControl(ids=ids, pinned=tuple(range(len(ids))))
        return llm.submit(Request(token_ids=prompt, params=params, canvas=control)).result().text

    assert re.fullmatch("no, [a-z]{3}", ask("no"))
    with pytest.raises(InvalidRequest, match="regex"):
        ask("maybe")


@pytest.mark.full
def test_time(record: Callable[..., None]) -> None:
    """Measured, not asserted: what a constraint costs where the model keeps to it anyway."""
    llm = nano()
    schema = {
        "type": "object",
        "properties": {"buyer": {"type": "string"}, "item": {"type": "string"},
                       "count": {"type": "integer"}},
        "required": ["buyer", "item", "count"], "additionalProperties": False,
    }  # fmt: skip
    question = [{"role": "user", "content": "JSON: An order of 75 robots came from Mafit Gupir."}]
    ratios = []
    for seed in range(20):
        took = []
        for params in (SamplingParams(seed=seed), SamplingParams(seed=seed, json_schema=schema)):
            began = time.perf_counter()
            output = llm.chat(question, params)
            took.append(time.perf_counter() - began)
            assert output.finish_reason == "stop"
        ratios.append(took[1] / took[0])
    record("nano: seconds under a schema / without, median of 20", median(ratios), limit="<= 1.3")


LONG = "word, " * 416
HELD_UP: dict[str, tuple[dict[str, Any], int]] = {
    "a choice of 2,500 characters": ({"choices": [LONG + "abcd", "b" + LONG]}, 300),
    "minLength 8,000": ({"json_schema": {"type": "string", "minLength": 8000}}, 100),
    "a hostile regular expression": ({"regex": "(.*a){12}.{1000}z"}, 100),
}
"""Constraint, and `max_tokens` in which no text of it ends: every search goes to its bound."""

SEARCHED: dict[str, tuple[dict[str, Any], int]] = {
    "a choice of 2,500 characters": HELD_UP["a choice of 2,500 characters"],
    "minLength 8,000": (HELD_UP["minLength 8,000"][0], 60),
    "an end far away": ({"regex": "[a-z0-9]{400,500}(x[0-9]{50}y){3}Q"}, 60),
    "barred words": ({"regex": "([ab]{1,9}c){30}d?e", "bad_words": ["aca", "ba"]}, 90),
    "a thought first": ({"json_schema": {"type": "array", "minItems": 40}}, 70),
}


def held_up(grammars: GrammarCache, name: str) -> tuple[Request, Callable[[], tuple[Matcher, str]]]:
    """A request whose searches are long, and a maker of its matcher and constraint's name."""
    language, room = (HELD_UP | SEARCHED)[name]
    params = SamplingParams(seed=3, max_steps=2, max_tokens=room, **language)
    thought = ThoughtIds(100, 101) if "thought" in name else None

    def found() -> tuple[Matcher, str]:
        made = grammars.matcher_for(params, thought=thought)
        assert made is not None
        return made

    return Request(token_ids=tuple(range(3, 40)), params=params, thought=thought), found


@pytest.mark.parametrize("name", SEARCHED)
def test_the_budget_of_a_search_changes_no_token(
    name: str, count: Callable[[int, int], int]
) -> None:
    """A search that is resumed in another state than it was left in."""
    engine, tokenizer = nano_engine(), nano().tokenizer
    assert tokenizer is not None
    request, found = held_up(GrammarCache(tokenizer, engine.spec.end_ids), name)
    made = by_reference(engine, request, ConstrainedAnswer(*found()))
    for budget in (7, 1, 10**9)[: count(1, 3)]:
        engine.searches.budget = budget
        output = last(submit_kept(engine, request, *found()))
        assert output.error is None, output
        assert output.token_ids == made.token_ids and output.usage.steps == len(made.trace)
        assert output.constraint is not None and output.constraint.rounds > 0


@pytest.mark.fault("R H5")
@pytest.mark.parametrize(
    "language",
    [{"regex": "(.*a.*b.*c){20}"},
     {"json_schema": {"type": "array", "items": {"type": "string"}, "minItems": 100,
                      "maxItems": 300}}],
    ids=["regex", "array"],
)  # fmt: skip
def test_hostile_grammars_do_not_hold_a_neighbour(language: dict[str, Any]) -> None:
    """Catches searches that run to their end within one pass, while every other row stands still.

    Counted: the steps of all searches in a pass, and the passes of the neighbour beside them.
    """
    engine, tokenizer = nano_engine(), nano().tokenizer
    assert tokenizer is not None
    spent = [0]

    class Counted(SearchQueue):
        def _resume(self, *given: Any) -> int:
            spent[-1] += (steps := super()._resume(*given))
            return steps

    engine.searches = Counted(BUDGET, clock=lambda: 0.0)  # steps alone count
    grammars = GrammarCache(tokenizer, engine.spec.end_ids)
    endless = SamplingParams(seed=1, max_steps=48, max_tokens=8000, min_tokens=7900)
    neighbour = engine.submit(Request(token_ids=tuple(range(3, 40)), params=endless))
    streams = [neighbour]  # one that is dropped ends its request
    for seed in range(4):
        params = SamplingParams(seed=seed, max_steps=1, max_tokens=40, **language)
        found = grammars.matcher_for(params)
        assert found is not None
        held = Request(token_ids=tuple(range(3, 40)), params=params)
        streams.append(submit_kept(engine, held, *found))
    for _ in range(40):
        steps, searching = engine.counters().steps, bool(engine.searches.sequences)
        spent.append(0)
        engine.step()
        assert not searching or engine.counters().steps > steps, "the neighbour steps as well"
    engine.end_all()
    assert sum(spent) > 10 * BUDGET and max(spent) <= BUDGET + 1000  # the last piece may go beyond


def test_no_grammar_is_compiled_in_the_engines_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps wait for one request's grammar; also for one that another request has spoilt."""
    threads, compiled = set[str](), guidance.compiled

    def watched(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return compiled(*args)

    monkeypatch.setattr(grammar_matcher, "compiled", watched)
    engine, tokenizer = nano_engine(), nano().tokenizer
    assert tokenizer is not None
    grammars = GrammarCache(tokenizer, engine.spec.end_ids)
    request, found = held_up(grammars, "a thought first")
    engine.frontend, worker = EndingFrontend(lambda ids: False, found=found()), Worker(engine)
    (kept,) = grammars._grammars.values()
    kept.result().discard()
    output = last(worker.submit(request))
    worker.close()
    assert output.error is None and output.constraint is not None
    assert threads == {threading.current_thread().name}


@pytest.mark.full
def test_longest_step_of_a_neighbour(record: Callable[..., None]) -> None:
    """Measured: how long others wait while a closing text is searched for.

    CPU time of the engine's thread, so that other work on the machine counts less. The count of
    passes beside a search is asserted: with a budget there are many, without one there is one.
    """
    engine, tokenizer = nano_engine(), nano().tokenizer
    assert tokenizer is not None
    grammars = GrammarCache(tokenizer, engine.spec.end_ids)
    endless = SamplingParams(seed=1, max_steps=48, max_tokens=8000, min_tokens=7900)
    neighbours = [
        engine.submit(Request(token_ids=tuple(range(3, 40)), params=endless)) for _ in range(2)
    ]

    def step_ms() -> float:
        began = time.thread_time()
        engine.step()
        return 1000 * (time.thread_time() - began)

    for _ in range(5):
        engine.step()
    quiet = max(step_ms() for _ in range(60))
    record("neighbour's longest step, ms, beside a free request", quiet)
    neighbours.pop().close()
    for name in HELD_UP:
        request, found = held_up(grammars, name)
        stream, took, searching = submit_kept(engine, request, *found()), [0.0], 0
        while engine.running > 1:
            took.append(step_ms())
            searching += bool(engine.searches.sequences)
        assert [e.output for e in stream][-1] is not None and searching > 5
        record(
            f"neighbour's longest step, ms, beside the search for an end of {name}", max(took),
            f"<= {quiet:.0f} + 50",
        )  # fmt: skip
