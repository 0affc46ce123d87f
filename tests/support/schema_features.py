"""Features of JSON schemas, as data: which are accepted, and what values they then allow.

`response_format`, strict tools and decisions are tested with each of them, and docs/canvas.md shows
this table: run `python -m tests.support.schema_features` from the root of the repository.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

S: dict[str, Any] = {"type": "string"}
N: dict[str, Any] = {"type": "integer"}
B: dict[str, Any] = {"type": "boolean"}
PAGE = Path(__file__).parents[2] / "docs/canvas.md"
START, END = "<!-- schema features:start -->\n", "<!-- schema features:end -->\n"


class Feature(NamedTuple):
    """One keyword, format or combination.

    Attributes:
        name: for people.
        schema: of one value. Its `$defs` belong at the root.
        valid, invalid: values that satisfy it, and that do not.
        refused: a part of the error, its remedy included; "" where the schema is accepted.
        choices: what a decision chooses from; None where there is no such list.
    """

    name: str
    schema: Any
    valid: Sequence[Any] = ()
    invalid: Sequence[Any] = ()
    refused: str = ""
    choices: Sequence[str] | None = None


def text(name: str, good: str, bad: str, **words: Any) -> Feature:
    """A feature of strings."""
    return Feature(name, {**S, **words}, [good], [bad, 5])


def no(name: str, schema: Any, refused: str) -> Feature:
    """A feature that is refused."""
    return Feature(name, schema, refused=refused)


FEATURES: list[Feature] = [
    Feature("`type`", B, [True], [0, None], choices=["yes", "no"]),
    Feature("`type`, several", {"type": ["boolean", "null"]}, [None, True], [0, "true"],
            choices=["true", "false", "null"]),
    Feature("`nullable`", {**B, "nullable": True}, [None, False], ["null"],
            choices=["true", "false", "null"]),
    Feature("`nullable` beside `enum`", {"enum": ["a", 1], "nullable": True}, [None, 1, "a"],
            ["b", 2], choices=["a", "1", "null"]),
    Feature("`nullable` beside `const`", {"const": "a", "nullable": True}, [None, "a"], ["b"],
            choices=["a", "null"]),
    Feature("`nullable` beside `$ref`", {"$ref": "#/$defs/x", "nullable": True, "$defs": {"x": B}},
            [None, True], [1], choices=["true", "false", "null"]),
    Feature("reference into a `nullable` part", {"type": "object", "additionalProperties": False,
            "properties": {"a": {"type": "array", "items": N, "nullable": True},
                           "b": {"$ref": "#/properties/v/properties/a/items"}}},
            [{"a": None, "b": 1}, {"a": [2]}], [{"b": "x"}, {"b": None}]),
    Feature("`enum`", {"enum": ["a", 1, True, None]}, ["a", 1, True, None], ["b", "1", False],
            choices=["a", "1", "true", "null"]),
    Feature("`enum` beside `type`", {**S, "enum": ["a", "b", 5]}, ["a"], [5, "c"],
            choices=["a", "b"]),
    Feature("`enum` beside `pattern`", {**S, "enum": ["a", "b", "bb"], "pattern": "^b"},
            ["b", "bb"], ["a"], choices=["b", "bb"]),
    Feature("`enum` of lists and objects", {"enum": [[1, "a"], {"k": None}]},
            [[1, "a"], {"k": None}], [[1], {}], choices=['[1, "a"]', '{"k": null}']),
    Feature("`const`", {"anyOf": [{"const": 3}, {"const": "x"}]}, [3, "x"], [4, "y"],
            choices=["3", "x"]),
    Feature("`minimum`, `maximum`", {**N, "minimum": 1, "maximum": 3}, [1, 3], [0, 4, 1.5],
            choices=["1", "2", "3"]),
    Feature("`exclusiveMinimum`, `exclusiveMaximum`",
            {**N, "exclusiveMinimum": 1, "exclusiveMaximum": 4}, [2, 3], [1, 4],
            choices=["2", "3"]),
    Feature("`multipleOf`", {**N, "multipleOf": 5, "minimum": 0, "maximum": 12}, [0, 10], [3, 15],
            choices=["0", "5", "10"]),
    Feature("numbers", {"type": "number", "minimum": 0.5, "maximum": 2}, [0.5, 1, 1.75], [0, 3]),
    text("`minLength`, `maxLength`", "abc", "a", minLength=2, maxLength=3),
    text("`pattern`", "xaby", "ac", pattern="ab"),
    text("`pattern`, anchored within groups", "ab", "xab", pattern="(^$)|(^a(b|c)$)"),
    text("`pattern` beside a length", "ab", "abc", pattern="^[a-z]+$", maxLength=2),
    text("`format` date", "2024-02-29", "2023-02-29", format="date"),
    text("`format` time", "23:59:59Z", "23:59:60Z", format="time"),
    text("`format` date-time", "2024-01-31T09:30:00.5Z", "2024-01-31 09:30", format="date-time"),
    text("`format` duration", "P1DT2H", "P", format="duration"),
    text("`format` email", "a.b@c.org", "a b@c.org", format="email"),
    text("`format` hostname", "a-1.example", "-a.example", format="hostname"),
    text("`format` ipv4", "192.0.2.255", "192.0.2.256", format="ipv4"),
    text("`format` ipv6", "2001:db8::1", "2001::db8::1", format="ipv6"),
    text("`format` uuid", "123e4567-E89b-12d3-a456-426614174000", "123e4567", format="uuid"),
    text("`format` uri", "https://a.example:80/b?c=d#e", "no uri", format="uri"),
    Feature("`items`, `minItems`, `maxItems`",
            {"type": "array", "items": N, "minItems": 1, "maxItems": 2}, [[1], [1, 2]],
            [[], [1, 2, 3], ["a"]]),
    Feature("`prefixItems`", {"type": "array", "prefixItems": [S, B], "items": N, "minItems": 1},
            [["a"], ["a", True], ["a", True, 1, 2]], [[], [1], ["a", 1]]),
    Feature("`prefixItems` without more", {"type": "array", "prefixItems": [S, B], "items": False},
            [[], ["a", True]], [["a", True, 1]]),
    Feature("`uniqueItems` false", {"type": "array", "items": N, "uniqueItems": False}, [[1, 1]],
            [["a"]]),
    Feature("`properties`, `required`, `additionalProperties` false",
            {"type": "object", "properties": {"a": N, "b": S}, "required": ["a"],
             "additionalProperties": False}, [{"a": 1}, {"a": 1, "b": "x"}], [{}, {"a": "x"}]),
    Feature("`required` beyond `properties`",
            {"type": "object", "required": ["z"], "properties": {"a": N}}, [{"a": 1, "z": True}],
            [{"a": 1}]),
    Feature("`additionalProperties` with a schema",
            {"type": "object", "additionalProperties": N}, [{}, {"a": 1}, {"a b": 2, "c": 3}],
            [{"a": "x"}]),
    Feature("any object", {"type": "object"}, [{}, {"a": {"b": [1, "x"]}}], [[], 1]),
    Feature("`patternProperties`", {"type": "object", "patternProperties": {"^x": N},
            "additionalProperties": False}, [{}, {"x1": 1, "x": 2}], [{"a": 1}, {"x": "y"}]),
    Feature("`patternProperties` beside names", {"type": "object", "properties": {"xa": S},
            "patternProperties": {"^x": {"maxLength": 1}}, "additionalProperties": False},
            [{"xa": "b"}, {"xa": "b", "xb": "c"}], [{"xa": "bc"}, {"a": "b"}]),
    Feature("`minProperties` 1", {"type": "object", "properties": {"a": N, "b": N},
            "additionalProperties": False, "minProperties": 1}, [{"a": 1}, {"a": 1, "b": 2}], [{}]),
    Feature("`maxProperties`", {"type": "object", "additionalProperties": N, "maxProperties": 1},
            [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    Feature("`anyOf`", {"anyOf": [B, {"type": "null"}]}, [True, None], [1],
            choices=["true", "false", "null"]),
    Feature("`anyOf` beside other keywords", {"type": ["string", "integer"], "minimum": 3,
            "anyOf": [S, {"maximum": 5}]}, ["a", 3, 5], [2, 6, None]),
    Feature("`anyOf` beside `properties`", {"type": "object", "properties": {"a": N, "b": N},
            "additionalProperties": False, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"a": 1, "b": 2}], [{}, {"a": "x"}]),
    Feature("`oneOf`, provably disjoint", {"oneOf": [{"const": "a"}, {"enum": ["b", "c"]}]},
            ["a", "c"], ["d"], choices=["a", "b", "c"]),
    Feature("`oneOf` beside `anyOf`", {"oneOf": [N, S], "anyOf": [{"minimum": 3}, {"maximum": 1}]},
            [3, 1], [2]),
    Feature("`allOf`", {"allOf": [{**N, "minimum": 3}, {"maximum": 6}, {**N, "multipleOf": 2}]},
            [4, 6], [3, 8, 5], choices=["4", "6"]),
    Feature("`allOf` of patterns", {"allOf": [{**S, "pattern": "^a"}, {**S, "pattern": "z$"}]},
            ["az", "abz"], ["a", "z"]),
    Feature("`allOf` of objects", {"allOf": [
        {"type": "object", "properties": {"a": N}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"maximum": 5}, "b": S}, "required": ["b"]},
    ]}, [{"a": 5, "b": "x"}], [{"a": 6, "b": "x"}, {"a": 1}]),
    Feature("`$ref`", {"$ref": "#/$defs/x", "$defs": {"x": {"enum": [1, 2]}}}, [1], [3],
            choices=["1", "2"]),
    Feature("`$ref` beside other keywords", {"$ref": "#/$defs/x", "maximum": 2, "$defs": {
        "x": {**N, "minimum": 1}}}, [1, 2], [0, 3], choices=["1", "2"]),
    Feature("`$ref`, recursive", {"$ref": "#/$defs/t", "$defs": {
        "t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}, [[], [[], [[]]]], [[1]]),
    Feature("no `type`", {"minLength": 2}, ["ab"], ["a"]),
    Feature("annotations", {**B, "title": "T", "description": "D", "default": 1, "x-note": 2},
            [True], [1], choices=["yes", "no"]),
    no("`not`", {"not": S}, "'not' is not supported; name what is allowed instead"),
    no("`if`, `then`, `else`", {"if": S, "then": S}, "'if' is not supported; use anyOf"),
    no("`uniqueItems`", {"type": "array", "uniqueItems": True}, "'uniqueItems' is not supported"),
    no("`contains`", {"type": "array", "contains": S}, "'contains' is not supported"),
    no("`propertyNames`", {"type": "object", "propertyNames": S}, "use patternProperties"),
    no("`dependentRequired`", {"dependentRequired": {}}, "use anyOf with required in each branch"),
    no("`unevaluatedProperties`", {"unevaluatedProperties": False}, "use additionalProperties"),
    no("`$dynamicRef`", {"$dynamicRef": "#a"}, "use $ref"),
    no("`items` as a list", {"type": "array", "items": [S]}, "use prefixItems"),
    no("unknown keywords", {"tipe": "string"}, "not known (did you mean 'type'?); leave it out"),
    no("unknown types", {"type": "strng"}, "not a type (did you mean 'string'?); use one or more"),
    no("other formats", {**S, "format": "phone"}, "use a pattern, or one of date"),
    no("look-around in `pattern`", {**S, "pattern": "(?=a)b"}, "only (?:...) groups"),
    no("control characters", {"enum": ["a\x01"]}, "control character; leave it out"),
    no("`oneOf`, overlapping", {"oneOf": [N, {"type": "number"}]}, "use anyOf"),
    no("`multipleOf` 0.1", {"type": "number", "multipleOf": 0.1}, "count in the smallest unit"),
    no("bounds beyond 2^53", {**N, "maximum": 10**20}, "use a nearer bound"),
    no("`minProperties` of unnamed keys", {"type": "object", "minProperties": 2}, "name them"),
    no("`patternProperties` beside other keys", {"type": "object", "patternProperties": {"a": S}},
       "add additionalProperties: false"),
    no("references out of the schema", {"$ref": "https://a.example/b"}, "use #/$defs/name"),
    no("references to nothing", {"$ref": "#/$defs/z"}, "leads nowhere"),
    no("a schema that needs itself", {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object",
       "properties": {"n": {"$ref": "#/$defs/x"}}, "required": ["n"]}}}, "optional or nullable"),
    no("contradictions", {**N, "minimum": 3, "maximum": 1}, "correct it or leave the part out"),
]  # fmt: skip


def root_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object whose only property is this value."""
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    return {"type": "object", "properties": {"v": inner}, "required": ["v"],
            "additionalProperties": False, "$defs": schema.get("$defs", {})}  # fmt: skip


def table() -> str:
    """The table of the page."""
    lines = ["| feature | example | JSON and strict tools | decisions |", "|---|---|---|---|"]
    for one in FEATURES:
        choices = "values without a list" if one.choices is None else ", ".join(one.choices)
        kept = f"no: {one.refused}" if one.refused else "yes"
        cells = [one.name, f"`{json.dumps(one.schema)}`", kept, "no" if one.refused else choices]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2], encoding="utf-8")
