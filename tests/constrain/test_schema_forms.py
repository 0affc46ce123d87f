"""Schemas that were refused in vain, taken in vain, or refused for a reason that is not theirs."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest

from dgemma.constrain.matcher import Grammar
from dgemma.constrain.regex import portable
from dgemma.constrain.sources import make_grammar
from dgemma.errors import LONGEST_NAME, MOST_NAMES, InvalidRequest, nearest
from dgemma.request_parts import ToolUse
from dgemma.text.calls import format_call
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall

BIG = -(1 << 63)


def both(schema: Any, tokenizer: Tokenizer) -> tuple[Grammar, Grammar]:
    """The grammars of an answer, and of a call, with a value of this schema as `v`."""
    ends = MarkerIds.of(tokenizer).ends
    keys = {key: schema[key] for key in ("$defs", "definitions", "$schema") if key in schema}
    root = {"type": "object", "properties": {"v": schema}, "required": ["v"], **keys}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": root}}
    return (
        make_grammar("json_schema", root, tokenizer, ends),
        make_grammar("tools", ToolUse([tool]), tokenizer, ends),
    )


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole text, with markers, is in the grammar."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text, control=True)
    return matcher.accept(ids) == len(ids) and matcher.accepting


def check(schema: Any, good: Sequence[Any], bad: Sequence[Any], tokenizer: Tokenizer) -> None:
    """Both doors take the good values and refuse the bad ones."""
    in_json, in_calls = both(schema, tokenizer)
    for value in (*good, *bad):
        text = json.dumps({"v": value}, ensure_ascii=False)
        call = format_call(ToolCall(name="f", arguments={"v": value}))
        wanted = any(value is one or json.dumps(value) == json.dumps(one) for one in good)
        assert takes(in_json, tokenizer, text) == wanted, value
        assert takes(in_calls, tokenizer, f"<|tool_call>{call}<tool_call|>") == wanted, value


def refused(schema: Any, tokenizer: Tokenizer) -> str:
    """What both doors say of a schema that they refuse."""
    said = set()
    ends = MarkerIds.of(tokenizer).ends
    tool = {"function": {"name": "f", "parameters": {"properties": {"v": schema}}}}
    for kind, value, name in (
        ("json_schema", {"properties": {"v": schema}}, "json_schema"),
        ("tools", ToolUse([tool]), "tool 'f' parameters"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            make_grammar(kind, value, tokenizer, ends)
        said.add(str(caught.value).removeprefix(name))
    (one,) = said
    return one


UNION = {"oneOf": [
    {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"],
     "additionalProperties": False} for kind in ("tea", "mate")
]}  # fmt: skip


@pytest.mark.fault("P E3", "P E7", "P E13")
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({**UNION, "discriminator": {"propertyName": "kind"}}, [{"kind": "tea"}], [{"kind": "a"}]),
        ({"type": "integer", "format": "int64"}, [1], ["a", 0.5]),
        ({"type": "number", "format": "float"}, [0.5], ["a"]),
        ({"type": ["integer", "null"], "format": "unix-time"}, [1, None], ["a"]),
        ({"type": "boolean", "markdownDescription": "**x**", "deprecationMessage": "y",
          "errorMessage": "z", "enumDescriptions": ["a"]}, [True], [1]),
    ],
)  # fmt: skip
def test_notes(schema: Any, good: Sequence[Any], bad: Sequence[Any], nano: Tokenizer) -> None:
    """Catches a schema of a stock client that is refused for what says nothing of values."""
    check(schema, good, bad, nano)


def test_notes_hide_nothing(nano: Tokenizer) -> None:
    """Catches a discriminator that makes overlapping branches pass, a format of texts ignored."""
    loose = {"oneOf": [{"type": "integer"}, {"type": "number"}],
             "discriminator": {"propertyName": "kind"}}  # fmt: skip
    assert "two branches of oneOf" in refused(loose, nano)
    assert "format 'phone'" in refused({"type": ["integer", "string"], "format": "phone"}, nano)
    assert "format 'phone'" in refused({"format": "phone"}, nano)


@pytest.mark.fault("P E5")
@pytest.mark.parametrize("name", ["Box<Tea>", "a b", "100%", "é/ü~", "%41", 'q"uote', "{x}"])
def test_references_are_percent_encoded(name: str, nano: Tokenizer) -> None:
    """Catches a reference that leads nowhere because it is written as a URI must be."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    for written in (quote(pointer, safe=""), quote(pointer)):
        schema = {"$ref": f"#/definitions/{written}", "definitions": {name: {"type": "integer"}}}
        check(schema, [1], ["a"], nano)
    plain = {"$ref": f"#/definitions/{pointer}", "definitions": {name: {"type": "integer"}}}
    if name != "%41":
        check(plain, [1], ["a"], nano)


@pytest.mark.fault("P E12")
def test_draft_4(nano: Tokenizer) -> None:
    """Catches a draft 4 schema that is refused, or whose open bounds are read as closed ones."""
    draft = {"$schema": "http://json-schema.org/draft-04/schema#"}
    older = {"$schema": "http://json-schema.org/draft-03/schema#"}
    number = {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3,
              "exclusiveMaximum": False}  # fmt: skip
    check({**number, **draft}, [2, 3], [1, 4], nano)
    grammar = make_grammar(
        "json_schema", {**draft, "id": "http://a.example/b", "type": "integer"}, nano, [1]
    )
    assert takes(grammar, nano, "5")
    assert "true and false are of draft 4" in refused({"exclusiveMinimum": True}, nano)
    with pytest.raises(InvalidRequest, match="draft 4 has true or false here"):
        make_grammar("json_schema", {**draft, "exclusiveMinimum": 3}, nano, [1])
    with pytest.raises(InvalidRequest, match=r"draft-03.* not read; use Draft 2020-12"):
        make_grammar("json_schema", older, nano, [1])


@pytest.mark.fault("P G1", "P G2")
@pytest.mark.parametrize(
    ("pattern", "said"),
    [(r"^\p{Lu}+$", r"\p{...}, a property of Unicode, is not supported"),
     (r"^[\P{Lu}]+$", r"\P{...}, a property of Unicode, is not supported"),
     (r"^(a)\1$", "a reference to a group"), (r"\Aa", "leave the backslash out"),
     (r"a\b", "a look-around"), ("(?i)a", "a flag or a look-around"),
     ("(?<=a)b", "a flag or a look-around"), ("a++", "possessive"), ("[]a]", "escape it")],
)  # fmt: skip
def test_reasons(pattern: str, said: str, nano: Tokenizer) -> None:
    """Catches a reason that speaks of something else than what is wrong."""
    assert said in refused({"type": "string", "pattern": pattern}, nano)


@pytest.mark.fault("P G2")
def test_named_groups_are_read_in_both_spellings(nano: Tokenizer) -> None:
    """Catches JavaScript's spelling refused while Python's passes."""
    for name in ("?<cup>", "?P<cup>"):
        check({"type": "string", "pattern": f"^({name}[0-9]+)$"}, ["12"], ["a"], nano)


@pytest.mark.fault("P B8")
def test_white_space_is_that_of_ecma(nano: Tokenizer) -> None:
    """Catches U+FEFF taken for a letter, and U+0085 for white space."""
    for pattern, good, bad in (
        (r"^\S$", "aé", " \ufeff\u0085\u00a0\u2028\u3000\x1f"),
        (r"^[^\s]$", "aé", " \ufeff\u0085\u00a0\u2028"),
        (r"^\s$", " \t\u00a0\u2028\u3000", "a\u0085\u180e"),
        (r"^[\s]$", " \t\u00a0\u2028", "a\u0085"),
        (r"^.$", "a\t", "\n\r\u2028\u2029"), (r"^\d$", "1", "\u0661"), (r"^\w$", "a_", "é-"),
        (r"^\W$", "- ", "a_1é"), (r"^\D$", "aé", "1\u0661"), (r"^[\w]$", "a", "é"),
    ):  # fmt: skip
        grammar = make_grammar("regex", portable_of(pattern), nano, [1])
        for letter in good + bad:
            assert takes(grammar, nano, letter) == (letter in good), (pattern, letter)


def portable_of(pattern: str) -> str:
    """A schema's pattern as an expression of a whole text."""
    return portable(pattern, "here")[1:-1]


@pytest.mark.fault("R L4")
def test_types_and_ranges(nano: Tokenizer) -> None:
    """Catches a type that is listed twice, and a range without a number that can be written."""
    assert "names 'string' twice" in refused({"type": ["string", "string"]}, nano)
    assert "finer than" in refused({"minimum": 1e-300, "maximum": 2e-300}, nano)
    check({"type": "number", "minimum": 1e-20, "maximum": 2e-20}, [], [0, 1], nano)


@pytest.mark.fault("P A1", "P A2", "P B1")
@pytest.mark.parametrize(
    "value", [BIG, BIG + 1, 1234567890123456789, (1 << 53) + 1, 0.12345678901234567, 1e-300,
              -9.223372036854775808e18, 3e300, 12345678901234567890123],
)  # fmt: skip
def test_numbers_that_would_be_rounded(value: float, nano: Tokenizer) -> None:
    """Catches another number in the answer than the schema's, and one that ends the process."""
    for schema in ({"const": value}, {"enum": [0, value]}, {"enum": [{"a": [value]}]}):
        assert "would round" in refused(schema, nano)
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        assert key in refused({"type": "number", key: value}, nano)
    with pytest.raises(InvalidRequest, match="would round"):
        make_grammar("grammar", f'start: %json {{"const": {value!r}}}', nano, [1])


@pytest.mark.fault("P B1")
@pytest.mark.parametrize(
    "value", [1 << 53, -(1 << 53), 10**18, -1e19, 0.1, 1e22, 1e-7, -0.0, 1.0, 123456789.125, 2e20]
)
def test_numbers_that_are_exact(value: float, nano: Tokenizer) -> None:
    """Catches a number that is refused though it is written as it is."""
    for grammar in (
        make_grammar("json_schema", {"const": value}, nano, [1]),
        make_grammar("grammar", f'start: %json {{"const": {value!r}}}', nano, [1]),
    ):
        found = json.loads(nano.decode([grammar.symbols.ids[k] for k in grammar.text]))
        assert found == value


CRASHES = """
import json, sys
from dgemma.constrain.regex import portable
from dgemma.constrain.sources import make_grammar
from dgemma.errors import InvalidRequest
from pathlib import Path
from dgemma.text.tokenizer import Tokenizer

def chain(make, count=3000):
    defs = {f"d{k}": make({"$ref": f"#/$defs/d{k + 1}"}) for k in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{count}": {"type": "string"}}}

rules = "".join(f"r{k}: (r{k + 1})\\n" for k in range(9000))
CASES = [
    ("json_schema", {"const": -(1 << 63)}), ("json_schema", {"enum": [1 - (1 << 63), 0]}),
    ("json_schema", {"type": "integer", "multipleOf": 10**9}),
    ("grammar", 'start: %json {"const": -9223372036854775808}'),
    ("grammar", 'start: /"/ %json {"const": -9223372036854775808} /"/'),
    ("grammar", f"start: r0\\n{rules}r9000: \\"a\\""),
    *(("json_schema", chain(make)) for make in (
        lambda ref: ref, lambda ref: {"allOf": [ref]}, lambda ref: {"anyOf": [ref]},
        lambda ref: {"anyOf": [ref, {"type": "null"}]}, lambda ref: {"maxLength": 3, **ref},
        lambda ref: {"type": "array", "items": ref},
        lambda ref: {"type": "object", "additionalProperties": ref},
        lambda ref: {"type": "object", "properties": {"a": ref}, "required": ["a"]},
    )),
]
tokenizer, ends = Tokenizer.from_directory(Path("dgemma/assets/nano")), [1]
for kind, value in CASES:
    try:
        make_grammar(kind, value, tokenizer, ends)
        print("made")
    except InvalidRequest as error:
        print("refused", str(error)[:60])
"""


@pytest.mark.process
@pytest.mark.fault("P A1", "P A2", "P A5")
def test_nothing_ends_the_process() -> None:
    """Catches what the grammar library does not survive: -2^63, and recursion without a bound."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHES], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert len(done.stdout.splitlines()) == 14, done.stdout


def test_names_are_compared_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches minutes of comparing a long name with long ones."""
    seen = list[int]()
    monkeypatch.setattr(
        difflib, "get_close_matches",
        lambda name, known, **_: seen.append(len(name) * sum(map(len, known))) or [],
    )  # fmt: skip
    assert nearest("a" * 10**6, ["b" * 10**6] * 1000) == ""
    assert nearest("a" * 100, ["b" * 10**6, *["b" * 100] * 1000]) == ""
    assert sum(seen) <= LONGEST_NAME * LONGEST_NAME * MOST_NAMES
