"""Under a template that leaves the empty thought to the model, each way to ask reads what nano's
own template writes, wherever the answer's beginning is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dgemma.compose.fill import Hole
from dgemma.compose.questions import Choice, Predicate
from dgemma.engine.sequence import Sequence
from dgemma.llm import LLM
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl, Output, Request
from tests.support.nano import nano
from tests.support.templates import open_nano

pytestmark = pytest.mark.model

ASK: list[Any] = [{"role": "user", "content": "Parity: 3182"}]
PARAMETERS = {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
SHORT: dict[str, Any] = {"seed": 1, "max_steps": 1, "canvas_length": 32}
QUICK: dict[str, Any] = {**SHORT, "max_tokens": 24}
TEXT = "The soup of Mira was good, " * 5


def _ids(llm: LLM) -> tuple[int, ...]:
    return tuple(llm.chat_ids(ASK))


def _controlled(llm: LLM, **given: Any) -> Output:
    params, control = SamplingParams.of(QUICK), CanvasControl(**given)
    return llm.run([Request(token_ids=_ids(llm), params=params, canvas=control)])[0]


def _answer(llm: LLM, *before: int) -> Output:
    """A free answer."""
    ids = llm.frontend.tokenizer.encode("It is even.")
    return Output(text="It is even.", token_ids=(*before, *ids), prompt_ids=_ids(llm))


HOLE = Hole(max_tokens=2)
LABEL = Choice("label", "", ["even", "odd"])
GOOD = Predicate("good", "Is it good?")
GIVEN: dict[str, Callable[[LLM], Any]] = {
    "chat: json_schema": lambda llm: llm.chat(ASK, **QUICK, json_schema=PARAMETERS),
    "chat: regex": lambda llm: llm.chat(ASK, **QUICK, regex="[a-z]+"),
    "chat: choices": lambda llm: llm.chat(ASK, **QUICK, choices=["even", "odd"]),
    "chat: best_of": lambda llm: llm.chat(ASK, **QUICK, choices=["even", "odd"], best_of=2),
    "chat: a required call": lambda llm: llm.chat(
        ASK, **QUICK, tools=[TOOL], tool_choice="required"
    ),
    "generate: ids of a chat": lambda llm: llm.generate(_ids(llm), **QUICK, regex="[a-z]+"),
    "stream: choices": lambda llm: llm.stream(ASK, **QUICK, choices=["even", "odd"]).result(),
    "submit: pins": lambda llm: _controlled(llm, ids=(300, 301), pinned=(0, 1)),
    "submit: seeds": lambda llm: _controlled(llm, ids=(300, 301), strength=0.5),
    "submit: a mask": lambda llm: _controlled(llm, allowed=((300, 301),), masks=(0,)),
    "decide": lambda llm: llm.decide("The soup was good.", [GOOD], samples=2),
    "decide: jointly": lambda llm: llm.decide("It was.", [GOOD, Predicate("b", "?")], joint=True),
    "decide: a conversation": lambda llm: llm.decide(ASK, [LABEL]),
    "decide: nothing is pinned": lambda llm: llm.decide(ASK, [Predicate("good", "")]),
    "decide: ids": lambda llm: llm.decide(_ids(llm), [LABEL]),
    "infill": lambda llm: llm.infill("The ", " gives milk.", **SHORT, max_hole=2),
    "infill: at the beginning": lambda llm: llm.infill("", " gives milk.", **SHORT, max_hole=2),
    "infill: several canvases": lambda llm: llm.infill(
        TEXT, " gives milk.", **SHORT, max_hole=60, search=False
    ),
    "fill": lambda llm: llm.fill(["A ", HOLE, " b ", HOLE, "."], **SHORT),
    "edit": lambda llm: llm.edit("Mira has a dog.", spans=[(11, 14)], **SHORT),
    "revise": lambda llm: llm.revise(_answer(llm), below=1.0, **SHORT),
    "repair": lambda llm: llm.repair('{"a": x}', **SHORT, json_schema=PARAMETERS),
}  # fmt: skip
FREE: dict[str, Callable[[LLM], Any]] = {
    "chat": lambda llm: llm.chat(ASK, **QUICK),
    "chat: drafts": lambda llm: llm.chat(ASK, **QUICK, best_of=2),
    "chat: tools": lambda llm: llm.chat(ASK, **QUICK, tools=[STRICT]),
    "chat: barred words": lambda llm: llm.chat(ASK, **QUICK, bad_words=["odd"]),
    "stream": lambda llm: llm.stream(ASK, **QUICK).result(),
    "autoregress": lambda llm: llm.autoregress(ASK, max_tokens=2),
}
THINKING: dict[str, Callable[[LLM], Any]] = {
    "chat": lambda llm: llm.chat(ASK, **QUICK, thinking=True),
    "chat: choices": lambda llm: llm.chat(ASK, **QUICK, thinking=True, choices=["even", "odd"]),
    "stream: regex": lambda llm: llm.stream(ASK, **QUICK, thinking=True, regex="[a-z]+").result(),
}
NO_ANSWER = {"close", "counters", "chat_ids", "prompt_ids", "run", "run_plan", "stream_plan"}
"""Methods of an LLM that ask nothing by themselves."""


def read(llm: LLM, call: Callable[[LLM], Any], monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    """The requests that a call makes, as they are read, by prompt; their order is not fixed."""
    found: list[Sequence] = []
    prepare = llm.engine.prepare

    def kept(request: Request) -> Sequence:
        found.append(prepare(request))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "prepare", kept)
        call(llm)
    assert found
    return found


def prompts(found: list[Sequence]) -> list[tuple[int, ...]]:
    return [one.request.token_ids for one in found]


def test_every_method_is_here() -> None:
    """Catches a new way to ask that nobody has looked at."""
    methods = {
        name for name, _ in inspect.getmembers(LLM, inspect.isfunction) if not name.startswith("_")
    }
    assert methods - NO_ANSWER == {name.partition(":")[0] for name in (*GIVEN, *FREE)}


@pytest.mark.fault("P C2", "P C5")
@pytest.mark.parametrize("name", list(GIVEN))
def test_given_beginnings_are_read_as_under_nanos_own_template(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a text pinned where the model would write its empty thought."""
    if "json_schema" in inspect.getsource(GIVEN[name]) or ":" in name:
        pytest.importorskip("llguidance")
    found = read(open_nano(), GIVEN[name], monkeypatch)
    assert prompts(found) == prompts(read(nano(), GIVEN[name], monkeypatch))
    assert all(one.thought_closed for one in found if one.request.mode != "score")


@pytest.mark.parametrize("name", list(FREE))
def test_free_answers_begin_as_the_template_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an empty thought that is put in front of an answer that is free to think."""
    turn = open_nano().facts.turn
    assert turn is not None
    for one in read(open_nano(), FREE[name], monkeypatch):
        own = one.request.token_ids
        if one.request.mode != "score":
            assert own[-len(turn.opening) :] == turn.opening and not one.thought_closed


@pytest.mark.parametrize("name", list(THINKING))
def test_with_thinking_on_nothing_is_put(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an empty thought in front of the one that is asked for."""
    found = read(open_nano(), THINKING[name], monkeypatch)
    assert prompts(found) == prompts(read(nano(), THINKING[name], monkeypatch))
    assert not any(one.thought_closed for one in found)


@pytest.mark.fault("P C1", "P C4")
def test_the_report_says_so() -> None:
    """Catches a prompt that was lengthened in silence, or is counted without what was put."""
    pytest.importorskip("llguidance")
    mine, own = open_nano(), nano()
    for call in (GIVEN["decide"], GIVEN["decide: a conversation"]):
        ours, theirs = call(mine), call(own)
        assert ours.thought_closed and not theirs.thought_closed
        assert (ours.answers, ours.usage) == (theirs.answers, theirs.usage)
    ours, theirs = (GIVEN["chat: choices"](llm) for llm in (mine, own))
    assert ours.thought_closed and not theirs.thought_closed
    assert (ours.text, ours.usage, ours.prompt_ids) == (
        theirs.text,
        theirs.usage,
        theirs.prompt_ids,
    )
    assert ours.usage.prompt_tokens == len(ours.prompt_ids) == len(mine.chat_ids(ASK)) + 4
    filled = GIVEN["infill"](mine)
    assert all(output.thought_closed for output in filled.outputs)
    revised, repaired = GIVEN["revise"](mine).output, GIVEN["repair"](mine)
    assert revised.thought_closed and repaired.thought_closed
    assert revised.prompt_ids == tuple(own.chat_ids(ASK))
    fitting = mine.repair('{"a": 1}', json_schema=PARAMETERS)
    assert fitting.thought_closed and not fitting.usage.steps
    assert not FREE["chat"](mine).thought_closed


def test_a_thought_that_the_model_wrote_is_not_closed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a revision that pins the answer's own empty thought behind another one."""
    llm = open_nano()
    turn = llm.facts.turn
    assert turn is not None
    output = _answer(llm, *turn.empty)
    found = read(llm, lambda own: own.revise(output, below=1.0, **SHORT), monkeypatch)
    assert all(one.request.token_ids == _ids(llm) for one in found)
