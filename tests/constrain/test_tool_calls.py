"""Calls that must be made: every text of the grammar is a call that the parser reads."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from dgemma.constrain.matcher import Grammar
from dgemma.constrain.sources import make_grammar
from dgemma.constrain.tool_calls import TEXT
from dgemma.errors import InvalidRequest
from dgemma.matcher import run_search
from dgemma.request_parts import ToolUse
from dgemma.text.calls import QUOTE, format_call
from dgemma.text.parse import MarkerIds
from dgemma.text.token_table import token_table_of
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall
from tests.support.parsed import parse
from tests.support.schemas import INTEGER, SCHEMAS, arr, random_walk, walk_length
from tests.support.tokenizers import CLOCK, NESTED, WEATHER

Count = Callable[[int, int], int]


def of_tools(tools: Any, tokenizer: Tokenizer, name: str | None = None) -> Grammar:
    """The grammar of a call."""
    return make_grammar("tools", ToolUse(tools, name), tokenizer, MarkerIds.of(tokenizer).ends)


def tool(parameters: Any, name: str = "f.x-1") -> dict[str, Any]:
    """A tool with these parameters."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SHARED = ("$defs", "definitions", "$schema", "$id")
"""Keywords whose place is the root of a schema."""


def parameters_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Parameters that have a schema of the corpus as one of two arguments."""
    moved = json.dumps(schema).replace('"#/properties/', '"#/properties/v/properties/')
    schema = json.loads(moved)
    shared = {key: schema[key] for key in SHARED if key in schema}
    inner = {key: value for key, value in schema.items() if key not in shared}
    return {"type": "object", "properties": {"v": inner, "B": INTEGER}, "required": ["v"], **shared}


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text with markers is a call of the grammar."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text, control=True)
    return matcher.accept(ids) == len(ids) and matcher.finished


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_call_is_read_and_valid(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches a call that is none, that has wrong arguments, or that cannot be written back.

    No false alarms: it holds for every text of the grammar.
    """
    parameters = parameters_of(SCHEMAS[name])
    grammar = of_tools([tool(parameters), CLOCK], nano)
    token_table = token_table_of(nano)
    schemas = {"f.x-1": parameters, "clock": CLOCK["function"]["parameters"]}
    for k in range(count(2, 40)):
        draw = random.Random(f"{name} {k}")
        matcher = grammar.matcher()
        ids = random_walk(matcher, token_table, draw, walk_length(draw))
        completion = run_search(matcher.completion(512))
        assert completion is not None, nano.decode(ids, control=True)
        assert matcher.accept(completion) == len(completion) and matcher.finished
        said = parse(nano, ids + completion)
        assert len(said.tool_calls) == 1 and not said.text, nano.decode(ids, control=True)
        call = said.tool_calls[0]
        assert QUOTE not in str(call.arguments) and format_call(call)
        found = jsonschema.Draft202012Validator(schemas[call.name]).iter_errors(call.arguments)
        assert not [error.message for error in found], call


def test_calls_at_full_size(gemma: Tokenizer, count: Count) -> None:
    """Catches a string's language that is too much for the library at 262,144 ids."""
    token_table = token_table_of(gemma)
    for name in (
        "any",
        "plate",
        "at least 80",
        "address",
        "json",
        "pattern of negations",
        "pattern keys beside names",
    ):
        grammar = of_tools([tool(parameters_of(SCHEMAS[name])), WEATHER], gemma)
        for k in range(count(1, 10)):
            draw = random.Random(f"{name} {k}")
            matcher = grammar.matcher()
            ids = random_walk(matcher, token_table, draw, 60)
            completion = run_search(matcher.completion(512))
            assert completion is not None and matcher.accept(completion) == len(completion)
            assert len(parse(gemma, ids + completion).tool_calls) == 1


def test_what_the_template_writes_is_in_the_grammar(tokenizer: Tokenizer) -> None:
    """Catches an order or a form of its own: the model has learnt the template's."""
    grammar = of_tools([WEATHER, CLOCK], tokenizer)
    for arguments in (
        {"city": "Bern", "days": [3, 1]},
        {"city": "a,}{: é\n", "days": [], "unit": "kelvin", "window": {"from": "1"}},
        {"city": "", "days": [7], "unit": None, "stops": [{"name": "x", "lat": -4.5e-7}]},
    ):
        call = ToolCall(name="get_weather", arguments=arguments)
        assert takes(grammar, tokenizer, f"<|tool_call>{format_call(call)}<tool_call|>"), call
    for call in (
        ToolCall(name="clock", arguments={"Zone": "CET"}), ToolCall(name="clock", arguments={}),
    ):  # fmt: skip
        assert takes(grammar, tokenizer, f"<|tool_call>{format_call(call)}<tool_call|>"), call


@pytest.mark.parametrize(
    "text",
    [
        "call:get_weather{}", 'call:get_weather{days:[],city:<|"|>x<|"|>}', "call:other{}",
        'call:get_weather{city:<|"|>x<|"|>,days:[0]}', "call:get_weather{city:x,days:[]}",
        'call:get_weather{city:<|"|>x<|"|>,days:[],unit:<|"|>F<|"|>}', "call:clock{zone:1}",
        'call:clock{Zone:<|"|>x<|"|>}<tool_call|><|tool_call>call:clock{}',
    ],
)  # fmt: skip
def test_what_is_no_right_call(text: str, nano: Tokenizer) -> None:
    """Catches a grammar that is too wide: keys, order, values and one call only."""
    grammar = of_tools([WEATHER, CLOCK], nano)
    assert not takes(grammar, nano, f"<|tool_call>{text}<tool_call|>")


def test_markers_are_tokens(nano: Tokenizer) -> None:
    """Catches a marker spelt out in ordinary tokens, which the parser would take for text."""
    marks = MarkerIds.of(nano)
    matcher = of_tools([CLOCK], nano).matcher()
    forced = matcher.forced()
    assert forced[0] == marks.call_open and nano.decode(forced[1:]) == "call:clock{"
    assert matcher.accept(nano.encode("<|tool_call>")) == 0
    ids = nano.encode(f"<|tool_call>call:clock{{Zone:{QUOTE}x", control=True)
    assert matcher.accept(ids) == len(ids)
    look_alike = nano.encode(QUOTE)
    assert matcher.accept(look_alike) < len(look_alike)
    alphabet = matcher.alphabet()
    assert alphabet is not None
    controls = nano.special_ids & set(token_table_of(nano).ids(alphabet).tolist())
    assert controls == {marks.call_open, marks.call_close, marks.quote}


def test_any_text_but_the_quote_token() -> None:
    """Catches a string that is barred without need, or a look-alike that slips through."""
    text = re.compile(TEXT.strip("/"))
    for parts in itertools.product(["<", "|", '"', ">", "a"], repeat=7):
        joined = "".join(parts)
        assert bool(text.fullmatch(joined)) == (QUOTE not in joined), joined
    assert text.fullmatch("é\n\x00<|") and not text.fullmatch(f"\n{QUOTE}")


def test_a_named_tool(nano: Tokenizer) -> None:
    """Catches a name that is only a wish, and a wrong name that is found out late."""
    grammar = of_tools([WEATHER, CLOCK], nano, "clock")
    assert takes(grammar, nano, "<|tool_call>call:clock{}<tool_call|>")
    assert nano.decode(grammar.matcher().forced()) == "call:clock{"
    with pytest.raises(InvalidRequest, match=r"clok.*did you mean 'clock'"):
        of_tools([WEATHER, CLOCK], nano, "clok")
    with pytest.raises(InvalidRequest, match="no tools"):
        of_tools([], nano)


def test_any_value(nano: Tokenizer) -> None:
    """A parameter without a type takes what can be written without keys."""
    grammar = of_tools([tool({"type": "object", "properties": {"a": {}}})], nano)
    for value in (None, True, 3, -1.5, "x", [], [1, ["y", {}]]):
        call = format_call(ToolCall(name="f.x-1", arguments={"a": value}))
        taken = takes(grammar, nano, f"<|tool_call>{call}<tool_call|>")
        assert taken, value
    call = format_call(ToolCall(name="f.x-1", arguments={"a": NESTED}))
    assert not takes(grammar, nano, f"<|tool_call>{call}<tool_call|>")


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"properties": {}}])
def test_a_tool_without_arguments(parameters: Any, nano: Tokenizer) -> None:
    """Catches a tool that cannot be called because it needs nothing."""
    assert takes(of_tools([tool(parameters)], nano), nano, "<|tool_call>call:f.x-1{}<tool_call|>")


def only(schema: Any) -> dict[str, Any]:
    """Parameters with one argument."""
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (3, "parameters must be an object"),
        ({"type": "string"}, "type object"),
        ({"type": "object", "not": {}}, "parameters #: keyword 'not'"),
        ({"type": ["object", "null"], "properties": {"z": False}, "required": ["z"]}, "object"),
        (only({"type": "strng"}), "did you mean 'string'"),
        (only({"type": "string", "format": "phone"}), "format 'phone'"),
        (only({"type": "string", "pattern": "a("}), "cannot be read"),
        (only({"type": "string", "minLength": 3, "maxLength": 1}), "above"),
        (only({"type": "string", "minLength": "3"}), "minLength"),
        (only({"type": "array", "uniqueItems": True}), "'uniqueItems'"),
        (only({"enum": []}), "enum"),
        (only({"type": "integer", "enum": ["a"]}), "required property 'a' is unsatisfiable"),
        (only({"const": f"a{QUOTE}"}), "must not hold"),
        (only({"type": "number", "multipleOf": 0.1}), "binary"),
        (only({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (only({"anyOf": [{"type": "null"}], "minProperties": 3}), "#/properties/a: minProperties"),
        (only({"$ref": "#/$defs/no"}), "leads nowhere"),
        (only({"$ref": "#/properties/a"}), "no finite"),
        (only({"type": "string", "pattern": "^[0-9]$", "minLength": 2}), "unsatisfiable"),
    ],
)
def test_refused_parameters(parameters: Any, said: str, nano: Tokenizer) -> None:
    """Catches a schema that is quietly not kept to."""
    with pytest.raises(InvalidRequest) as caught:
        of_tools([tool(parameters)], nano)
    assert said in str(caught.value)


@pytest.mark.parametrize("tools", [[{}], [{"function": {"name": 3}}], ["f"], [tool(None, "a b")]])
def test_refused_tools(tools: Any, nano: Tokenizer) -> None:
    """Catches a tool whose name no call can hold."""
    with pytest.raises(InvalidRequest, match="tool"):
        of_tools(tools, nano)


def test_strict_calls_among_free_text(nano: Tokenizer) -> None:
    """Catches a strict call outside its schema or of no tool, a free answer that is barred, and a
    tool that is not strict but held to its schema."""
    strict = tool({"type": "object", "properties": {"n": INTEGER}, "required": ["n"]}, "get_time")
    strict["function"]["strict"] = True
    ends = MarkerIds.of(nano).ends
    tools = [tool({"type": "object"}, "get"), strict]
    grammar = make_grammar("tools", ToolUse(tools, required=False), nano, ends)

    def taken(text: str) -> bool:
        matcher, ids = grammar.matcher(), nano.encode(text, control=True)
        return matcher.accept(ids) == len(ids) and matcher.accepting

    call = "<|tool_call>call:get_time{n:3}<tool_call|>"
    thought = "<|channel>thought\nhm\n<channel|>"
    for good in ("", "a < b\n", call, f"{thought}So: {call}{call} done", thought + "x",
                 '<|tool_call>call:get{a:<|"|>b<|"|>,c:[1]}<tool_call|>'):  # fmt: skip
        assert taken(good), good
    for bad in (call.replace("3", '<|"|>x<|"|>'), call.replace("n:3", ""),
                f"{thought[:-11]}<|tool_call>x",
                "<|tool_call>call:other{}<tool_call|>", call.replace("_time", "_tim")):  # fmt: skip
        assert not taken(bad), bad


@pytest.mark.parametrize(
    "nothing",
    [
        {"type": "string", "pattern": "^[0-9]$", "minLength": 2}, False,
        {"allOf": [{"type": "integer"}, {"type": "string"}]},
        {"allOf": [{"minimum": 8}, {"maximum": 9}, {**INTEGER, "multipleOf": 7}]},
        {"type": "string", "pattern": "^[a-z]+$", "enum": ["A", "B"]},
        {"type": "string", "pattern": '<[|]"[|]>'},
        arr({"type": "string", "pattern": "a", "maxLength": 0}, 1),
    ],
    ids=repr,
)  # fmt: skip
def test_an_optional_part_that_nothing_satisfies(nothing: Any, nano: Tokenizer) -> None:
    """Catches a key that can be written though no value can follow it: the answer would hang."""
    schema = {"type": "object", "properties": {"a": nothing, "b": INTEGER}, "required": ["b"]}
    grammar = of_tools([tool(schema)], nano)
    assert takes(grammar, nano, "<|tool_call>call:f.x-1{b:3}<tool_call|>")
    matcher, begun = grammar.matcher(), nano.encode("<|tool_call>call:f.x-1{a", control=True)
    assert matcher.accept(begun) < len(begun)
    listed = {"type": "array", "items": schema, "prefixItems": [INTEGER, nothing]}
    grammar = of_tools([tool(only(listed))], nano)
    assert takes(grammar, nano, "<|tool_call>call:f.x-1{a:[1]}<tool_call|>")
    assert takes(grammar, nano, "<|tool_call>call:f.x-1{a:[]}<tool_call|>")
    matcher, begun = grammar.matcher(), nano.encode("<|tool_call>call:f.x-1{a:[1,", control=True)
    assert matcher.accept(begun) < len(begun)


def test_free_keys_are_not_names(nano: Tokenizer) -> None:
    """Catches a named key that is written a second time as a free one, outside its schema."""
    grammar = of_tools([tool(only({
        "type": "object", "properties": {"xa": INTEGER}, "patternProperties": {"^x": {}},
        "additionalProperties": False,
    }))], nano)  # fmt: skip
    for good in ("{}", "{xa:1}", "{xb:null}", "{xa:1,xab:true,x:[]}", '{<|"|>x y<|"|>:2}'):
        assert takes(grammar, nano, f"<|tool_call>call:f.x-1{{a:{good}}}<tool_call|>"), good
    for bad in ("{xa:null}", "{xb:1,xa:null}", '{<|"|>xa<|"|>:null}', "{a:1}", "{x y:1}"):
        assert not takes(grammar, nano, f"<|tool_call>call:f.x-1{{a:{bad}}}<tool_call|>"), bad
