"""`response_format`, strict tools and decisions keep to the same features of JSON schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from dgemma.compose.questions import Choice, Predicate, questions_of
from dgemma.constrain.completion import BYTE_ORDER
from dgemma.constrain.formats import FORMATS
from dgemma.constrain.matcher import Grammar
from dgemma.constrain.regex import portable, whole
from dgemma.constrain.sources import make_grammar
from dgemma.errors import InvalidRequest
from dgemma.request_parts import ToolUse
from dgemma.text.calls import format_call
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall
from tests.support.schema_features import END, FEATURES, PAGE, START, Feature, root_of, table

Count = Callable[[int, int], int]
NAMES = ("json_schema", "tool 'f' parameters", "schema")
"""What the errors of the three call the schema."""


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text with markers is in the grammar."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text, control=True)
    return matcher.accept(ids) == len(ids) and matcher.accepting


def makers(tokenizer: Tokenizer) -> list[Callable[[Any], Any]]:
    """What is made of a schema: a grammar of JSON, one of calls, and questions."""
    ends = MarkerIds.of(tokenizer).ends
    return [
        lambda schema: make_grammar("json_schema", schema, tokenizer, ends),
        lambda schema: make_grammar("tools", ToolUse([{"type": "function", "function": {
            "name": "f", "parameters": schema, "strict": True}}]), tokenizer, ends),
        questions_of,
    ]  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_all_three_agree(feature: Feature, nano: Tokenizer) -> None:
    """Catches a feature that one of the three accepts, refuses or reads in its own way."""
    schema = root_of(feature.schema)
    in_json, in_calls, ask = makers(nano)
    if feature.refused:
        said = set()
        for make, name in zip(makers(nano), NAMES, strict=True):
            with pytest.raises(InvalidRequest) as caught:
                make(schema)
            assert str(caught.value).startswith(name) and feature.refused in str(caught.value)
            said.add(str(caught.value).removeprefix(name))
        assert len(said) == 1, said
        return
    validator = jsonschema.Draft202012Validator(schema)
    json_grammar, call_grammar = in_json(schema), in_calls(schema)
    for value in (*feature.valid, *feature.invalid):
        good = json.dumps(value) in map(json.dumps, feature.valid)
        if "nullable" not in feature.name and "format" not in feature.name:
            assert validator.is_valid({"v": value}) == good, value
        assert takes(json_grammar, nano, json.dumps({"v": value})) == good, value
        call = format_call(ToolCall(name="f", arguments={"v": value}))
        assert takes(call_grammar, nano, f"<|tool_call>{call}<tool_call|>") == good, call
    if feature.choices is None:
        with pytest.raises(InvalidRequest, match="#/properties/v: its values are not a list"):
            ask(schema)
        return
    (question,) = ask(schema)
    if feature.choices == ["yes", "no"]:
        assert isinstance(question, Predicate)
    else:
        assert isinstance(question, Choice) and question.choices == feature.choices
    assert question.name == "v"
    assert question.instructions == ("D" if feature.name == "annotations" else "v")


def test_the_page_has_this_table() -> None:
    """Catches a feature that the page tells otherwise."""
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition(START)[2].partition(END)[0]
    assert shown == table(), "run: python -m tests.support.schema_features"
    assert {f"`format` {name}" for name in FORMATS} <= {feature.name for feature in FEATURES}


def same_walks(one: Grammar, other: Grammar, name: str, count: int) -> None:
    """Walk two grammars byte by byte with the same symbols; their options are the same."""
    draw = random.Random(name)
    for _ in range(count):
        first, second = one.automaton(), other.automaton()
        for _ in range(60):
            options = first.options()
            assert options == second.options() and first.accepting == second.accepting
            symbols = [k for k in range(len(BYTE_ORDER)) if options >> k & 1]
            if not symbols:
                break
            marks = [k for k in symbols if chr(BYTE_ORDER[k]) in ':.@-/?#%[]"TPZ+ab']
            step = [draw.choice(marks if marks and draw.random() < 0.5 else symbols)]
            first.push(step)
            second.push(step)


@pytest.mark.parametrize(
    "pattern",
    ["ab", "^a", "b$", "^a|b$", "(^a|b)$", "^(?:a|^b)", "(^$)|(^ab$)", "(a|^b)(a|b$)", "[|]a", "a|",
     r"\$a$", "((^a))b", "(a$)|(^b)", "(ab)+$", "^(a|b){2}$", "(?P<n>^a)b", "a{2}|b$"],
)  # fmt: skip
def test_patterns_are_found_as_in_the_library(pattern: str, nano: Tokenizer, count: Count) -> None:
    """Catches an anchor within a group that binds to more than its own alternative in a call."""
    (in_json, *_) = makers(nano)
    ours = f"^(?:{whole(portable(pattern, 'here'))})$".replace("(?s:.*)", "(?:[^a]|a)*")
    theirs = in_json({"type": "string", "pattern": pattern})
    same_walks(theirs, in_json({"type": "string", "pattern": ours}), pattern, count(20, 400))


def test_schemas_that_are_too_deep(nano: Tokenizer) -> None:
    """Catches a schema whose depth ends as a fault of the server."""
    schema: Any = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    with pytest.raises(InvalidRequest, match=r"nested too deep; use \$ref"):
        makers(nano)[0](schema)


def test_references_into_moved_parts(nano: Tokenizer) -> None:
    """Catches a reference into a part that the checked schema has elsewhere."""
    branch = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    parts = {"x": {"oneOf": [branch, {"type": "null"}], "nullable": True},
             "y": {"$ref": "#/properties/x/oneOf/0/properties/a"},
             "z": {"$ref": "#/$defs/yes"}}  # fmt: skip
    schema = {"type": "object", "properties": parts, "required": [*parts], "$defs": {"yes": True}}
    grammar = makers(nano)[0](schema)
    assert takes(grammar, nano, '{"x": {"a": 1}, "y": 2, "z": []}')
    assert not takes(grammar, nano, '{"x": null, "y": 3, "z": 0}')
