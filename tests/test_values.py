"""Requests, events and outputs as values: whole, picklable, and made once.

A server in another process sends them; so nothing in them may be a closure, a tensor or a file.
"""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from dgemma.params import OPTIONS, SamplingParams
from dgemma.request_parts import PromptContent, ThoughtIds, ToolUse
from dgemma.text.parse import StreamParser
from dgemma.types import (
    CanvasControl,
    CanvasEdit,
    Constraint,
    Event,
    InvalidToolCall,
    InvalidToolCallDelta,
    Output,
    Request,
    TextDelta,
    ThoughtDelta,
    TokenScore,
    ToolCall,
    ToolCallDelta,
    TraceStep,
    Usage,
    Verdict,
)
from tests.support.bodies import BODIES
from tests.support.client import Recorder, serve
from tests.support.nano import nano

TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
}}}  # fmt: skip
CALL = ToolCall(name="f", arguments={"n": [1, {"a": None}]})
BROKEN = InvalidToolCall(text="call:f{", error="a key is missing", name="f")
SCORE = TokenScore(token_id=7, logprob=-0.5, top=((7, -0.5), (8, -2.0)), asked=(-3.0,), entropy=0.1)
STEP = TraceStep(
    canvas=1, step=2, temperature=0.5, ids=(1, 2), argmax=(3, 4), accepted=b"\1\2",
    entropy=(0.1, 0.2), reason="converged", attempt=1,
)  # fmt: skip
PARAMS = (
    SamplingParams(
        max_tokens=9, seed=2**64 - 1, max_steps=3, entropy_bound=0.2, t_min=0.1, t_max=0.9,
        confidence_threshold=0.1, stability_threshold=2, ignore_tail=True, stable_prefix=True,
        canvas_length="auto", stop=["x"], thinking_budget=4, temperature=0.5, top_p=0.9, top_k=5,
        min_p=0.1, min_tokens=2, logit_bias={7: -1.5}, allowed_token_ids=[7, 8], bad_words=["y"],
        logprobs=2, logprob_token_ids=[9],
    ),
    SamplingParams(json_schema={"type": "array", "items": {"enum": [1, "a", None]}}),
    SamplingParams(regex="a+"), SamplingParams(grammar="code-fence"),
    SamplingParams(choices=["a", "b"]), SamplingParams(structure="table:a,b"),
    SamplingParams(restart_after="auto", tries=2, race=3, verdict=True, quality="careful"),
)  # fmt: skip
REQUEST = Request(
    token_ids=(2, 5), params=PARAMS[0], mode="score", chat=True,
    tool_use=ToolUse((TOOL,), "f", False), index=3, frames=True,
    alternatives=2, status=True, trace=True,
    thought=ThoughtIds(48, 49, True),
    canvas=CanvasControl(
        ids=(7, -1), pinned=(0,), strength=0.5, allowed=((7, 8),), masks=(-1, 0),
        bias=((1, 8, 2.0),), read_only=True,
    ),
    edits=(CanvasEdit(canvas=1, attempt=2, step=3, position=4, do="ban", id=7),),
    contents=(PromptContent(start=1, length=1, key="k"),),
    score_from=2, priority=-1, owner="me", replaces="editor", deadline_s=1.5, queue_timeout_s=2.5,
)  # fmt: skip
VERDICT = Verdict(logprobs=(-0.5,), disagreements=(0,), steps=1, converged=False, below=1)
OUTPUT = Output(
    text="é", token_ids=(7,), seed=5, restart_after=4, finish_reason="error", stopped_by="x",
    usage=Usage(prompt_tokens=2, completion_tokens=1, thought_tokens=1, canvases=1, steps=3,
                discarded_steps=1),
    thinking="hm", tool_calls=(CALL,), invalid_tool_calls=(BROKEN,), error="no",
    trace=(STEP,), scores=(SCORE,), verdict=VERDICT,
    constraint=Constraint(
        mode="regex", complete=True, rounds=1, repaired=2, fallbacks=3, closed=4
    ),
    prompt_ids=(2, 5), thought_closed=True, index=3,
)  # fmt: skip
EVENT = Event(
    type="commit", index=3, canvas=1, step=2, ids=(7,),
    deltas=(TextDelta("é"), ThoughtDelta("hm"), ToolCallDelta(1, CALL),
            InvalidToolCallDelta(1, BROKEN)), fields=("thinking",),
    accepted=b"\1", entropy=b"\2", whole=False, reason="step_cap", scores=(SCORE,), state="queued",
    attempt=1, verdict=VERDICT, t_ms=12.5, temperature=0.8,
    alternatives=(((7, -0.5),),),
    output=OUTPUT,
)  # fmt: skip
VALUES = [*PARAMS, REQUEST, OUTPUT, EVENT]


def parts(value: Any) -> list[Any]:
    """A value and all dataclasses in it."""
    found = [value] if is_dataclass(value) else []
    inner = [getattr(value, field.name) for field in fields(value)] if found else []
    if isinstance(value, tuple | list):
        inner = list(value)
    return found + [part for one in inner for part in parts(one)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_survive_pickle(value: Any) -> None:
    """Catches a field that cannot be sent, or that arrives as another value."""
    sent = pickle.loads(pickle.dumps(value))
    assert sent == value and repr(sent) == repr(value) and hash(type(sent)) == hash(type(value))


def test_every_field_of_every_value_is_tried() -> None:
    """Catches a new field that the test above does not fill."""
    every = [part for value in VALUES for part in parts(value)]
    for kind in {type(part) for part in every}:
        own = [part for part in every if type(part) is kind]
        for field in fields(kind):
            plain = field.default
            tried = [getattr(part, field.name) for part in own]
            assert any(value != plain for value in tried), f"{kind.__name__}.{field.name}"
    assert {type(part) for part in every} >= {Request, SamplingParams, Event, Output, ToolCallDelta}


def test_merging_takes_the_first_value_and_makes_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a default that wins over a nearer one, and a check of what is checked already."""
    own, near, far = (SamplingParams(top_k=k, max_steps=s) for k, s in ((None, 3), (7, 4), (8, 5)))
    made = count(monkeypatch, SamplingParams)
    merged = own.merged(near, far, seed=6, max_steps=9, top_p=0.5)
    assert (merged.top_k, merged.max_steps, merged.seed, merged.top_p) == (7, 3, 6, 0.5)
    assert len(made) == 1
    assert merged.merged(near, seed=1) is merged and len(made) == 1
    assert {name for name in OPTIONS if getattr(merged, name) is None} == {
        *OPTIONS
    } - {"top_k", "max_steps", "seed", "top_p"}  # fmt: skip


def count(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[Any]:
    """Every value of a class that is made from here on."""
    made: list[Any] = []
    check = kind.__post_init__  # type: ignore[attr-defined]

    def noted(value: Any) -> None:
        made.append(value)
        check(value)

    monkeypatch.setattr(kind, "__post_init__", noted)
    return made


@pytest.mark.model
@pytest.mark.parametrize("more", [
    {}, {"params": SamplingParams(seed=1, stop=["a"], max_steps=6)},
    {"params": SamplingParams(seed=2, regex="[a-f]{3,9}", max_steps=6)},
    {"params": SamplingParams(seed=3, max_steps=6, max_tokens=60), "tool_use": ToolUse((TOOL,))},
])  # fmt: skip
def test_a_request_through_pickle_gives_the_same(more: dict[str, Any]) -> None:
    """Catches a stop check, a grammar or a reader that the request does not bring along; and an
    output that is not the fold of its events."""
    if "params" in more and not more["params"].stop:
        pytest.importorskip("llguidance")
    ids = tuple(nano().chat_ids([{"role": "user", "content": "Who are you?"}], None, True))
    plain = {"params": SamplingParams(seed=1, max_steps=6), "chat": True, "frames": True}
    request = Request(token_ids=ids, **plain | more)
    here = nano().submit(request).result()
    events = list(nano().submit(pickle.loads(pickle.dumps(request))))
    there = pickle.loads(pickle.dumps(events[-1])).output
    assert here == there and (here.text or here.thinking or here.tool_calls)
    deltas = [delta for event in events if event.type != "frame" for delta in event.deltas]
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == here.text
    thought = "".join(d.text for d in deltas if isinstance(d, ThoughtDelta))
    assert (thought or None) == here.thinking
    assert tuple(d.call for d in deltas if isinstance(d, ToolCallDelta)) == here.tool_calls
    fields_of = [field for event in events for field in event.fields]
    assert len(fields_of) >= len(here.token_ids)
    assert fields_of[: len(here.token_ids)].count("thinking") == here.usage.thought_tokens


@pytest.mark.model
@pytest.mark.parametrize("path", BODIES)
def test_the_requests_of_every_route_survive_pickle(path: str) -> None:
    """Catches a route whose requests hold more than plain values."""
    model = Recorder()
    assert serve(model).post(path, BODIES[path]).status_code == 200
    assert model.asked and pickle.loads(pickle.dumps(model.asked)) == model.asked


@pytest.mark.model
@pytest.mark.parametrize("path, body", [
    ("/v1/chat/completions", {"stream": True, "diffusion": {"max_steps": 4, "stream": "text"}}),
    ("/v1/chat/completions", {"stream": False}), ("/v1/completions", {"prompt": "Hello"}),
    ("/v1/messages", {"max_tokens": 9}),
])  # fmt: skip
def test_one_request_over_http_makes_its_values_twice(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a value that is checked again and again: once by the server, once by the engine."""
    client = serve()
    if "prompt" not in body:
        body = {"messages": [{"role": "user", "content": "Hello"}]} | body
    params, requests = count(monkeypatch, SamplingParams), count(monkeypatch, Request)
    readers = count_readers(monkeypatch)
    assert client.post(path, body | {"seed": 1}).status_code == 200
    assert len(params) <= 2 and len(requests) <= 2 and len(readers) == 1


def count_readers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every reader of ids that is made from nothing; a draft's is a copy."""
    made: list[Any] = []
    begin = StreamParser.__init__

    def noted(parser: StreamParser, *given: Any, **named: Any) -> None:
        made.append(parser)
        begin(parser, *given, **named)

    monkeypatch.setattr(StreamParser, "__init__", noted)
    return made
