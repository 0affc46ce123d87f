"""Calls in forms that are not Gemma's: read where they can mean only one thing."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgemma.text.calls import QUOTE, NotACall, format_call, parse_call
from dgemma.text.lenient_calls import read_call
from dgemma.types import ToolCall

strings = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).filter(
    lambda text: QUOTE not in text
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
arguments = st.dictionaries(strings, values, max_size=4)


def read(text: str) -> ToolCall | None:
    """The call of a text; None: it is none."""
    try:
        return read_call(text)
    except NotACall:
        return None


def strictly(text: str) -> ToolCall | None:
    """The same by Gemma's form alone."""
    try:
        return parse_call(text)
    except NotACall:
        return None


@pytest.mark.fault("P D1", "P D3", "P D4")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('call:f{"litres": 2}', {"litres": 2}),
        ('call:f{"litres":2,"mode":<|"|>soft<|"|>}', {"litres": 2, "mode": "soft"}),
        ("call:f(litres=2)", {"litres": 2}),
        ("f(litres=2, mode='soft')", {"litres": 2, "mode": "soft"}),
        ("f{litres:2}", {"litres": 2}),
        ("f()", {}),
        ('call:f({"litres": 2})', {"litres": 2}),
        ("call:f({'a': {'b': [1, 2,],},},)", {"a": {"b": [1, 2]}}),
        ('call:f{"mode":"soft"}', {"mode": "soft"}),
        ("call:f{'mode':'it\\'s \"so\"'}", {"mode": 'it\'s "so"'}),
        ('call:f{"a b": "c\\n\\u00e9\\ud83e\\udd99"}', {"a b": "c\né🦙"}),
        ("call:f{a:1,}", {"a": 1}),
        ("call:f{a:[1,]}", {"a": [1]}),
        ("call:f{a:True,b:False,c:None,d:null}", {"a": True, "b": False, "c": None, "d": None}),
        ("call:f{a=+1,b=.5,c=5.,d=-.5e1}", {"a": 1, "b": 0.5, "c": 5.0, "d": -5.0}),
        ('{"name": "f", "arguments": {"litres": 2}}', {"litres": 2}),
        ('call:{"name": "f", "parameters": {}}', {}),
        ('{"name": "f", "arguments": "{\\"litres\\": 2}"}', {"litres": 2}),
        (
            '{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
            {"a": 1},
        ),
    ],
)
def test_read(text: str, wanted: dict[str, Any]) -> None:
    """Catches a call that is nearly right and does not run, or runs with a wrong argument."""
    assert read(text) == ToolCall(name="f", arguments=wanted)


@pytest.mark.parametrize(
    "text",
    [
        "f", "call:f", "f(x)", "f(2)", 'f("x")', "call:f{a:b}", "call:f(a=b)", "call:f(a=(1,2))",
        'call:f{"a":1,"a":2}', 'call:f{"a":1', 'call:f{"a:1}', "call:f{'a':\"b'}", "call:f(a=1}",
        "call:f{a:1)", 'call:f{"a":"b" "c"}', 'call:f{"a":"b"c}', 'call:f{a:"x<|"|>y<|"|>"}',
        'call:f{"a":"\\d"}', 'call:f{"a":"\\ud83e"}', "call:f{,}", "call:f{a:1,,b:2}",
        "call:f{a:1 b:2}", "call:f{a:1}.", "f(a=1) and f(a=2)", "f{}{}",
        "call:f({a:1},{b:2})", "call:f((a=1))", "call:f[a=1]", "[]", "{}", '{"name":"f"}',
        '{"name":1,"arguments":{}}', '{"name":"f","arguments":[1]}', '{"name":"f","arguments":"x"}',
        '{"name":"f","arguments":{},"parameters":{}}', '{"name":"f","arguments":{},"more":1}',
        '[{"name":"f","arguments":{}}]', "call:f{a:1.2.3}", "call:f{a:1e999}", "call:f{a:1.e999}",
        "call:f{a:--1}", "call:f{a:NaN}", "call:f{a:++1}", "call:f{a:.}", "call:f{a=1=2}",
        "f(a=" + "[" * 500 + "]" * 500 + ")", "f(" * 5000, "call:f{a:+" + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_not_a_call(text: str) -> None:
    """What could mean several things, or is cut off, must not run."""
    assert read(text) is None


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(arguments, st.integers(0, 11))
def test_json_and_python(given: dict[str, Any], cut: int) -> None:
    """The forms in which other models call, whatever the values.

    No false alarms: it holds for all JSON values whose texts hold neither the quote token nor
    control characters.
    """
    call = ToolCall(name="get_it", arguments=given)
    text, whole = json.dumps(given), {"name": "get_it", "arguments": given}
    forms = [f"call:get_it{text}", f"get_it({text})", json.dumps(whole)]
    forms.append(json.dumps(whole, ensure_ascii=False, indent=1))
    forms.append(json.dumps({"name": "get_it", "arguments": text}))
    if json.dumps(given, ensure_ascii=False).isprintable():
        forms += [f"call:get_it{given!r}", f"get_it({given!r})"]
    for form in forms:
        assert repr(read(form)) == repr(call), form
        for end in (min(cut, len(form) - 1), len(form) // 2, len(form) - 1):
            assert read(form[:end]) is None, "half of a call runs"


SYNTAX = st.sampled_from([
    "call:", "f", "{", "}", "(", ")", "[", "]", ",", ":", "=", "a", "b", "1", "-2.5", "true",
    "None", '"', "'", "\\", QUOTE, " ", "\n", '"name"', '"arguments"', "x y", "é",
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@example("call:f{'a:1}")
@example('call:f{a"b:1}')
@given(st.lists(SYNTAX, max_size=14).map("".join) | arguments.map(
    lambda given: format_call(ToolCall(name="f", arguments=given))
))  # fmt: skip
def test_strict_texts_read_the_same(text: str) -> None:
    """Catches a lenient reading that takes the place of the strict one, or contradicts it.

    No false alarms: it holds for all texts.
    """
    strict, found = strictly(text), read(text)
    if strict is not None:
        assert repr(found) == repr(strict)
    spaced = read(f" {text} ")
    assert repr(spaced) == repr(found), "blanks around a call change it"


@pytest.mark.parametrize("unit", [
    '"', "'", "\\", '"\\', "a", " ", "\n", "{", "(", "[", ":", "call:", "a=1,", "a:'b',", QUOTE,
    "f{",    '{"a":', "call :", "\x1c",
])  # fmt: skip
def test_takes_time_in_proportion_to_the_text(unit: str) -> None:
    """Catches a text of a few kilobytes that holds up an engine: steps are counted."""

    def steps(count: int) -> int:
        taken = 0

        def step(frame: Any, event: str, argument: Any) -> None:
            nonlocal taken
            taken += 1

        texts = [start + unit * count for start in ("", "call:f{", "f(a=", '{"name":"f",')]
        before = sys.getprofile()
        sys.setprofile(step)
        try:
            for text in texts:
                read(text)
        finally:
            sys.setprofile(before)
        return taken

    assert steps(4000) <= 4.5 * steps(1000) + 1000
