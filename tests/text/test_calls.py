"""Gemma's way of writing calls, there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.errors import InvalidRequest
from dgemma.text.calls import NotACall, format_call, parse_call
from dgemma.text.chat import ChatTemplate
from dgemma.text.lenient_calls import read_call
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall

strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda text: '<|"|>' not in text  # Hypothesis draws constants of our own modules too
)
keys = strings | st.sampled_from(["city", "a:b", "{", "", "null", "5", " x "])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(arguments=st.dictionaries(keys, values, max_size=4))
def test_round_trip(arguments: dict[str, Any]) -> None:
    """What the trainer writes is what the parser reads, whatever the values.

    No false alarms: it holds for all JSON values whose texts are without the quote token.
    """
    call = ToolCall(name="get_it", arguments=arguments)
    found = parse_call(format_call(call))
    assert found == call
    assert repr(found) == repr(ToolCall(name="get_it", arguments=found.arguments))


def test_form() -> None:
    """The very text of Gemma's template: sorted without regard to case, bare keys, no blanks."""
    call = ToolCall(name="f", arguments={"B": [1, -2.5, "x y"], "a": {"z": True, "k": None}})
    assert format_call(call) == 'call:f{a:{k:null,z:true},B:[1,-2.5,<|"|>x y<|"|>]}'
    assert format_call(ToolCall(name="f", arguments={})) == "call:f{}"
    assert format_call(ToolCall(name="f", arguments={"a b": 1})) == 'call:f{<|"|>a b<|"|>:1}'


def test_same_as_the_template(gemma: Tokenizer, gemma_template: ChatTemplate) -> None:
    """Training targets must be the form in which calls stand in later prompts."""
    arguments = {"b": [1, -2.5, "x y"], "A": {"z": True, "k": {}}, "c": 1e22, "é": "ü\n{}"}
    call = {"function": {"name": "f", "arguments": arguments}}
    ids = gemma_template.encode(
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    )
    text = format_call(ToolCall(name="f", arguments=arguments))
    assert f"<|tool_call>{text}<tool_call|>" in gemma.decode(ids, control=True)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("call:f{a:None}", {"a": None}),
        (" call: f { a : 1 , b : [ ] } ", {"a": 1, "b": []}),
        ('call:f{a:<|"|>,}{:<|"|>}', {"a": ",}{:"}),
        ('call:f{<|"|>a<|"|>:<|"|><|"|>}', {"a": ""}),
        ("call:f{a:-0.5e-3}", {"a": -0.0005}),
        ("call:f{a:[[],{}]}", {"a": [[], {}]}),
        ("call:f{a:1,b:2,a:3}", {"a": 3, "b": 2}),  # as in JSON, where the last one counts too
    ],
)
def test_read(text: str, arguments: dict[str, Any]) -> None:
    """Forms that models write though the template does not."""
    assert parse_call(text) == ToolCall(name="f", arguments=arguments)


def test_dotted_names() -> None:
    """Names as servers of tools make them."""
    for name in ("a.b", "a-b", "ns:f", "été"):
        assert parse_call(f"call:{name}{{}}").name == name
        assert format_call(ToolCall(name=name, arguments={})) == f"call:{name}{{}}"


@pytest.mark.parametrize(
    "text",
    [
        "", "call:{}", "call:f", "call:f{", "call:f{a}", "call:f{a:}", "call:f{a:1",
        "call:f{}}",
        "call:f{,}", "call:f{a:1 b:2}", "call:f{a:b}", "call:f[]",
        "call:f{a:01x}", "call:f{a:1e999}", "call:f{a:nan}", "call:f{a:{}",
        'call:f{a:<|"|>x}', 'call:f{a:<|"|>x<|"|>y}', "call:f{} x", "call:f g{}", "call:f{a:[1 2]}",
        "call:f{a:" + "[" * 500 + "]" * 500 + "}", "call:f{a:" + "9" * 5000 + "}", "call:f{[:1}",
    ],
)  # fmt: skip
def test_not_a_call(text: str) -> None:
    """Half of a call must never run as a whole one, and no text may break the reader."""
    for reader in (parse_call, read_call):
        with pytest.raises(NotACall):
            reader(text)


@pytest.mark.parametrize(
    "call",
    [
        ToolCall(name="a b", arguments={}),
        ToolCall(name="", arguments={}),
        ToolCall(name="f{", arguments={}),
        ToolCall(name="<bos>", arguments={}),
        ToolCall(name="f", arguments={"a": '<|"|>'}),
        ToolCall(name="f", arguments={"a": float("inf")}),
        ToolCall(name="f", arguments={"a": {1}}),
        ToolCall(name="f", arguments={"a": {1: 2}}),
    ],
)
def test_cannot_be_written(call: ToolCall) -> None:
    """What could not be read back is refused when it is written, not found out later."""
    with pytest.raises(InvalidRequest):
        format_call(call)
