"""Grammars, tool choices and ranked drafts through the calls that users make."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from dgemma.errors import InvalidRequest
from dgemma.params import SamplingParams
from dgemma.tasks import make_example
from dgemma.types import Request
from tests.support.nano import nano

pytestmark = pytest.mark.model

HELLO = [{"role": "user", "content": "Hello!"}]


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("set_timer", minutes={"type": "integer"}),
    tool("call", name={"type": "string", "maxLength": 12}, urgent={"type": "boolean"}),
]


@pytest.mark.parametrize("seed", range(3))
def test_required_tool_call(seed: int) -> None:
    """A required call that is text, a second call, or arguments that the tool does not take."""
    params = SamplingParams(seed=seed, max_tokens=90, max_steps=8)
    out = nano().chat(HELLO, params, tools=TOOLS, tool_choice="required")
    assert out.finish_reason == "stop" and out.text == "" and len(out.tool_calls) == 1
    assert out.constraint is not None and out.constraint.mode == "tools"
    call = out.tool_calls[0]
    if call.name == "set_timer":
        assert isinstance(call.arguments["minutes"], int)
    else:
        assert call.name == "call" and isinstance(call.arguments["urgent"], bool)


def test_named_tool_call() -> None:
    """The model's own choice of a tool where the caller has named one."""
    choice = {"type": "function", "function": {"name": "call"}}
    params = SamplingParams(seed=1, max_tokens=90, max_steps=8)
    out = nano().chat(HELLO, params, tools=TOOLS, tool_choice=choice)
    assert [call.name for call in out.tool_calls] == ["call"]


def test_no_tool() -> None:
    """Tools that must not be called are shown all the same."""
    llm = nano()
    params = SamplingParams(seed=1, max_tokens=30)
    out = llm.chat(HELLO, params, tools=TOOLS, tool_choice="none")
    assert out.prompt_ids == llm.chat(HELLO, params).prompt_ids


@pytest.mark.parametrize(
    ("choice", "tools", "message"),
    [("required", None, "needs tools"), ("always", TOOLS, "tool_choice must be"),
     ({"function": {"name": "nobody"}}, TOOLS, "nobody"), ({}, TOOLS, "tool_choice must be")],
)  # fmt: skip
def test_wrong_tool_choices(choice: Any, tools: Any, message: str) -> None:
    """A choice that cannot be honoured is taken for "auto"."""
    with pytest.raises(InvalidRequest, match=message):
        nano().chat(HELLO, tools=tools, tool_choice=choice)
    both = SamplingParams(regex="a")
    with pytest.raises(InvalidRequest, match="cannot be combined"):
        nano().chat(HELLO, both, tools=TOOLS, tool_choice="required")


def test_the_thought_stays_free(count: Callable[[int, int], int]) -> None:
    """A schema that forbids the thought, or that the thought is counted to."""
    llm = nano()
    example = make_example("thought", "heldout", 1, 0)
    schema = {"type": "integer"}
    thoughts = 0
    for seed in range(count(2, 4)):
        params = SamplingParams(seed=seed, max_tokens=150, json_schema=schema)
        out = llm.chat(list(example.messages), params, thinking=True)
        assert out.finish_reason == "stop" and isinstance(json.loads(out.text), int)
        thoughts += out.thinking is not None
        plain = llm.chat(list(example.messages), params)
        assert plain.thinking is None and isinstance(json.loads(plain.text), int)
    assert thoughts > 0, "nano thinks where it is asked to"


def test_bad_words_never_come(count: Callable[[int, int], int]) -> None:
    """A barred word that is put together from pieces, or that a border of canvases cuts."""
    llm = nano()
    words = ["e", "lo", "you", " a"]
    for seed in range(count(4, 8)):
        params = SamplingParams(seed=seed, max_steps=4, max_tokens=120, min_tokens=110)
        out = llm.chat(HELLO, SamplingParams.merged(SamplingParams(bad_words=words), params))
        assert not any(word in out.text for word in words), out.text
        assert len(out.token_ids) >= 100


def test_streamed_texts_are_the_answer() -> None:
    """What was shown as committed is not what the language made of it."""
    llm = nano()
    params = SamplingParams(seed=3, max_steps=4, max_tokens=200, regex="([a-f]{3} ){40}end")
    events = list(llm.stream(HELLO, params))
    text = "".join(event.text for event in events if event.type in ("commit", "done"))
    assert events[-1].output is not None and events[-1].output.text == text
    assert text.endswith("end") and len(text) == 163
    assert events[-1].output.usage.canvases > 1


def test_best_of() -> None:
    """Drafts in the order they were made, or ranked by another number than is said."""
    llm = nano()
    params = SamplingParams(seed=5, max_steps=2, max_tokens=40)
    drafts = llm.chat(HELLO, params, n=6)
    ranked = llm.chat(HELLO, params, n=3, best_of=6)
    assert len(ranked) == 3 and {out.seed for out in ranked} <= {out.seed for out in drafts}
    means = []
    for out in ranked:
        ids = (*out.prompt_ids, *out.token_ids)
        ids += (llm.facts.end_id,) if out.finish_reason == "stop" else ()
        request = Request(token_ids=ids, mode="score", score_from=len(out.prompt_ids))
        scores = llm.run([request])[0].scores
        means.append(sum(score.logprob for score in scores) / len(scores))
    assert means == sorted(means, reverse=True)
    assert llm.chat(HELLO, params, best_of=6) == ranked[0]
    with pytest.raises(InvalidRequest, match="best_of"):
        llm.chat(HELLO, params, n=3, best_of=2)
    for wrong in (0, -1, "2", True):
        with pytest.raises(InvalidRequest, match="n must be"):
            llm.generate("a", params, n=cast(Any, wrong), best_of=2)
    width = llm.engine.spec.length
    full = SamplingParams(seed=5, max_steps=1, min_tokens=width, max_tokens=width)
    prompt = [5] * (llm.engine.limits.context - width)
    assert llm.generate(prompt, full, best_of=2).finish_reason == "length"


def test_least_tokens_beside_a_call() -> None:
    """A parameter that is passed over where a call is kept to its schema."""
    llm = nano()
    with pytest.raises(InvalidRequest, match="min_tokens"):
        llm.chat(HELLO, SamplingParams(min_tokens=9), tools=TOOLS, tool_choice="required")


def test_revise_and_repair() -> None:
    """A revision that loses the sure tokens; a repair that is not in the language."""
    llm = nano()
    out = llm.chat(HELLO, SamplingParams(seed=1, max_tokens=60, max_steps=3))
    revised = llm.revise(out, below=0.9)
    kept = [p for p in range(len(out.token_ids)) if p not in revised.shaky]
    assert all(revised.output.token_ids[p] == out.token_ids[p] for p in kept)
    params = SamplingParams(seed=1, max_steps=8, json_schema={"enum": [{"a": 1}, {"a": 2}]})
    fixed = llm.repair('{"a" 1}', params)
    assert json.loads(fixed.text) in ({"a": 1}, {"a": 2})
    assert llm.repair(fixed.text, params, 0).text == fixed.text
    with pytest.raises(InvalidRequest, match="json_schema"):
        llm.revise(fixed)
