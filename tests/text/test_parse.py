"""Thought, calls and answer out of ids; streams give the same as the whole."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.errors import TokenizerError
from dgemma.text.chat import ChatTemplate
from dgemma.text.parse import MarkerIds, StreamParser, thought_is_open
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import (
    Delta,
    InvalidToolCall,
    InvalidToolCallDelta,
    TextDelta,
    ThoughtDelta,
    ToolCall,
    ToolCallDelta,
)
from tests.support.parsed import Parsed, parse

CALL = '<|tool_call>call:f{city:<|"|>Bern 🦙<|"|>,n:[1,2]}<tool_call|>'
F = ToolCall(name="f", arguments={"city": "Bern 🦙", "n": [1, 2]})
G = ToolCall(name="g", arguments={})


def bad(text: str, error: str, name: str | None = None) -> tuple[InvalidToolCall, ...]:
    """One call that cannot be run."""
    return (InvalidToolCall(text=text, error=error, name=name),)


NO_KEY, CUT = "a key is missing", "it ends before a value"

CASES: dict[str, tuple[str, Parsed]] = {
    "answer": ("Hé 🦙!\n<turn|>", Parsed(None, (), "Hé 🦙!\n")),
    "nothing": ("", Parsed(None, (), "")),
    "only an end": ("<turn|><eos>", Parsed(None, (), "")),
    "thought": (
        "<|channel>thought\nstep 1\n\nstep 2\n<channel|>42<turn|>",
        Parsed("step 1\n\nstep 2", (), "42"),
    ),
    "empty thought": ("<|channel>thought\n<channel|>42", Parsed(None, (), "42")),
    "empty thought, no newline": ("<|channel>thought<channel|>42", Parsed(None, (), "42")),
    "no thought at all": ("<|channel><channel|>42", Parsed(None, (), "42")),
    "blank thought": ("<|channel>thought\n\n\n<channel|>42", Parsed(None, (), "42")),
    "open thought": ("<|channel>thought\nhm 🦙\n", Parsed("hm 🦙", (), "")),
    "open name": ("<|channel>thou", Parsed("thou", (), "")),
    "other name": ("<|channel>thoughts\nx<channel|>y", Parsed("thoughts\nx", (), "y")),
    "two thoughts": (
        "<|channel>thought\na\n<channel|>x<|channel>thought\nb<channel|>y",
        Parsed("a\nb", (), "xy"),
    ),
    "call": (f"{CALL}<|tool_response>", Parsed(None, (F,), "")),
    "all three": (
        f"<|channel>thought\nhm\n<channel|>{CALL}<|tool_call>call:g{{}}<tool_call|>Done.<turn|>",
        Parsed("hm", (F, G), "Done."),
    ),
    "text before a call": (f"Wait. {CALL} Ok.", Parsed(None, (F,), "Wait.  Ok.")),
    "call in an open thought": (f"<|channel>thought\nhm{CALL}x", Parsed("hm", (F,), "x")),
    "after the end": (f"a<turn|>b{CALL}<|channel>thought\nc", Parsed(None, (), "a")),
    "after eos": ("a<eos><eos>b<eos>", Parsed(None, (), "a")),
    "end within a thought": ("<|channel>thought\na<turn|>b<channel|>c", Parsed("a", (), "")),
    "whole call without its end": (CALL.removesuffix("<tool_call|>"), Parsed(None, (F,), "")),
    "half a call": (
        'x<|tool_call>call:f{a:<|"|>y',
        Parsed(None, (), "x", bad('call:f{a:<|"|>y', "a string is not closed", "f")),
    ),
    "no call": (
        "<|tool_call>f(x)<tool_call|>y<turn|>",
        Parsed(None, (), "y", bad("f(x)", "it does not begin with call:NAME{", "f")),
    ),
    "call within a call": (
        "<|tool_call>call:f{a:<|tool_call>call:g{}<tool_call|>",
        Parsed(None, (G,), "", bad("call:f{a:", CUT, "f")),
    ),
    "thought within a call": (
        "<|tool_call>call:f{<|channel>thought\nx<channel|>y",
        Parsed("x", (), "y", bad("call:f{", NO_KEY, "f")),
    ),
    "end within a call": (
        "<|tool_call>call:f{a<turn|>:1}",
        Parsed(None, (), "", bad("call:f{a", "no colon after key 'a'", "f")),
    ),
    "markers of a call around nothing": ("a<|tool_call><tool_call|>b", Parsed(None, (), "ab")),
    "other brackets": (
        "<|tool_call>f(city='Bern 🦙', n=[1,2])<tool_call|>",
        Parsed(None, (F,), ""),
    ),
    "stray markers": ('a<channel|>b<tool_call|>c<|"|>d<bos><pad>e', Parsed(None, (), "abcde")),
}  # fmt: skip


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, Parsed]:
    """One answer with what it says."""
    return CASES[request.param]


def folded(deltas: list[Delta]) -> Parsed:
    """What a stream's deltas add up to, by a reader of our API."""
    thinking = "".join(d.text for d in deltas if isinstance(d, ThoughtDelta))
    text = "".join(d.text for d in deltas if isinstance(d, TextDelta))
    calls = [d for d in deltas if isinstance(d, ToolCallDelta)]
    invalid = [d for d in deltas if isinstance(d, InvalidToolCallDelta)]
    for found in (calls, invalid):
        assert [d.index for d in found] == list(range(len(found)))
    return Parsed(
        thinking or None, tuple(d.call for d in calls), text, tuple(d.call for d in invalid)
    )


def test_cases(tokenizer: Tokenizer, case: tuple[str, Parsed]) -> None:
    """Each is an answer that a model can give; catches loss or mixing of the three fields."""
    assert parse(tokenizer, tokenizer.encode(case[0], control=True)) == case[1]


def test_every_split(tokenizer: Tokenizer, case: tuple[str, Parsed]) -> None:
    """Cut anywhere, also id by id: the deltas add up to the same, and none is empty."""
    ids = tokenizer.encode(case[0], control=True)
    cuts = [[ids[:k], ids[k:]] for k in range(len(ids) + 1)] + [[[i] for i in ids]]
    for chunks in cuts:
        parser = StreamParser(tokenizer)
        deltas = [delta for chunk in chunks for delta in parser.push(chunk)] + parser.finish()
        assert folded(deltas) == case[1]
        assert all(d.text for d in deltas if isinstance(d, (TextDelta, ThoughtDelta)))
        assert parser.push(ids) == [] and parser.finish() == []


def test_stream_does_not_wait(nano: Tokenizer) -> None:
    """Text and thoughts come as they are committed; catches a parser that holds all to the end."""
    parser = StreamParser(nano)
    assert parser.push(nano.encode("<|channel>thought\nhm\n", control=True)) == [ThoughtDelta("hm")]
    assert parser.push(nano.encode("so<channel|>A", control=True)) == [
        ThoughtDelta("\nso"), TextDelta("A"),
    ]  # fmt: skip
    assert parser.push(nano.encode(CALL, control=True)) == [ToolCallDelta(0, F)]
    llama = nano.encode("🦙")
    assert [parser.push([i]) for i in llama] == [[], [], [], [TextDelta("🦙")]]


def test_look_alikes_are_text(tokenizer: Tokenizer) -> None:
    """Markers spelt out in ordinary tokens: a model that quotes a call must not make one."""
    for text in (CALL, "<|channel>thought\nx<channel|>y", "a<turn|>b", "<eos>"):
        assert parse(tokenizer, tokenizer.encode(text)) == Parsed(None, (), text)
    inner = tokenizer.encode("<|tool_call>call:f{a:", control=True)
    quote = tokenizer.encode('<|"|>', control=True)
    value = '<|"|>,b:1}<tool_call|>'
    ids = inner + quote + tokenizer.encode(value) + quote + tokenizer.encode("}")
    assert parse(tokenizer, ids).tool_calls == (ToolCall(name="f", arguments={"a": value}),)


def test_prompt_within_a_thought(nano: Tokenizer) -> None:
    """A continued answer whose prompt ends in a thought."""
    ids = nano.encode("so 4\n<channel|>4<turn|>", control=True)
    assert parse(nano, ids, thought_open=True) == Parsed("so 4", (), "4")
    assert parse(nano, ids) == Parsed(None, (), "so 4\n4")


def test_is_a_thought_open(nano: Tokenizer, nano_template: ChatTemplate) -> None:
    """Tells the two kinds of prompts apart, also after a finished turn with an open channel."""
    markers = MarkerIds.of(nano)
    for text, wanted in (
        ("", False),
        ("<|turn>model\n<|channel>thought\n", True),
        ("<|channel>thought\n<channel|>", False),
        ("<|channel>thought\nx<turn|>\n<|turn>user\n", False),
        ("<|channel>thought\nx<channel|><|channel>", True),
    ):
        assert thought_is_open(markers, nano.encode(text, control=True)) is wanted
    question = [{"role": "user", "content": "x"}]
    for thinking in (False, True):
        assert not thought_is_open(markers, nano_template.encode(question, thinking=thinking))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_canvases(nano: Tokenizer, data: st.DataObject) -> None:
    """A half-trained model writes anything: no crash, and streams agree with the whole.

    No false alarms: it holds for all ids.
    """
    pool = [
        *nano.encode("thought\ncall:f{a:1}🦙,[]x"),
        48,
        48,
        49,
        49,
        52,
        100,
        100,
        101,
        101,
        2,
        4,
    ]
    ids = data.draw(st.lists(st.sampled_from([*pool, 106, 1, 50, 1023]), max_size=40))
    opened = data.draw(st.booleans())
    whole = parse(nano, ids, thought_open=opened)
    parser = StreamParser(nano, thought_open=opened)
    deltas: list[Delta] = []
    while ids:
        size = data.draw(st.integers(1, len(ids)))
        deltas += parser.push(ids[:size])
        ids = ids[size:]
    assert folded(deltas + parser.finish()) == whole


def test_ids_outside(nano: Tokenizer) -> None:
    """An id of another vocabulary is an error in every state, not a silent gap."""
    for start in ("", "<|tool_call>", "<|channel>"):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            parse(nano, [*nano.encode(start, control=True), 5000])


FIELDS = [
    ("<|channel>thought\nx<channel|>ab<|tool_call>call:f{}<tool_call|>", "x", "ab", 1),
    ("<|channel>thought\nwait<tool_call|> more<channel|>ab", "wait more", "ab", 0),
    ("a<|tool_call>no call<tool_call|>b", "", "ab", 1),
    ('a<|tool_call>call:f{s:<|"|>x<|"|>}', "", "a", 1),
    ("a<|tool_call>call:f{<|channel>thought\nx<channel|>b", "x", "ab", 1),
    ("a<|tool_call>call:f{n:4399", "", "a", 1),
    ("a<|tool_call><tool_call|>b", "", "ab", 0),
    ("a<turn|>b", "", "a", 0),
]


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_ids(case: tuple[str, str, str, int], size: int, nano: Tokenizer) -> None:
    """Catches an id that is counted with one field while its text stands in another."""
    text, thought, answer, calls = case
    ids = nano.encode(text, control=True)
    parser = StreamParser(nano)
    deltas: list[Delta] = []
    for low in range(0, len(ids), size):
        deltas += parser.push(ids[low : low + size])
        assert len(parser.fields) <= low + size
    whole = folded(deltas + parser.finish())
    assert len(parser.fields) == len(ids) and len(whole.tool_calls + whole.invalid) == calls

    def of(field: str) -> str:
        kept = [i for i, one in zip(ids, parser.fields, strict=True) if one == field]
        return nano.decode(kept, control=True)

    assert of("text") == whole.text == answer
    assert of("thinking").removeprefix("thought\n") == (whole.thinking or "") == thought
    assert bool(of("tool_call")) == bool(calls)


@pytest.mark.fault("P D6")
@pytest.mark.parametrize("size", [1, 2, 100])
def test_calls_of_other_tools(nano: Tokenizer, size: int) -> None:
    """Catches a call that nobody offered, which a client would run, or show as text."""
    text = "a<|tool_call>call:g{}<tool_call|><|tool_call>call:f{n:1}<tool_call|>b"
    ids = nano.encode(text, control=True)
    f = ToolCall(name="f", arguments={"n": 1})
    for tools in ([], ["f"], ["f", "g"]):
        parser = StreamParser(nano, tools=tools)
        deltas: list[Delta] = []
        for low in range(0, len(ids), size):
            deltas += parser.push(ids[low : low + size])
        found = folded(deltas + parser.finish())
        calls = tuple(call for call in (G, f) if call.name in tools)
        assert (found.text, found.tool_calls) == ("ab", calls)
        assert [(one.name, one.error) for one in found.invalid] == [
            (call.name, "no such tool was offered") for call in (G, f) if call not in calls
        ]


@pytest.mark.fault("N 15")
def test_no_marker_reaches_a_text(nano: Tokenizer) -> None:
    """Catches a control token of a call in the text, spelt out: whatever the model writes."""
    marks = nano.encode('<|tool_call><tool_call|><|"|>', control=True)
    words = nano.encode("call:f{a:1}", control=True)
    draw = random.Random(5)
    for _ in range(200):
        ids = draw.choices([*marks, *words], k=draw.randint(1, 20))
        found = parse(nano, ids, tools=["f"])
        assert not any(name in found.text for name in ("<|tool_call>", "<tool_call|>", '<|"|>'))
        assert "<|tool_call>" not in "".join(one.text for one in found.invalid)
