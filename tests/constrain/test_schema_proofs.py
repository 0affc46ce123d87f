"""What is proved about schemas, and patterns that engines agree about."""

from __future__ import annotations

import contextlib
import re
from itertools import combinations
from typing import Any

import jsonschema
import pytest

from dgemma.compose.questions import Choice, questions_of
from dgemma.constrain.json_schema import accepted_schema, checked_schema
from dgemma.constrain.regex import portable, whole
from dgemma.constrain.schema_proofs import EFFORT, SchemaReader, within_bounds
from dgemma.constrain.schema_references import References
from dgemma.errors import InvalidRequest

S = {"type": "string"}

VALUES: list[Any] = [None, True, False, 0, 1, 1.0, 1.5, 3, 7, -2, "", "a", "b", [], [1], {},
                     {"k": "a"}, {"k": "b"}, {"k": 1, "j": 2}]  # fmt: skip


def disjoint(one: Any, other: Any, root: Any) -> bool:
    """Whether it is proved that no value satisfies both."""
    return not SchemaReader(root, within_bounds).possible((one, other))


def productive(node: Any, root: Any) -> bool:
    """Whether nothing proves that a schema has no finite value."""
    return SchemaReader(root, None).possible((node,))


def test_disjoint_is_never_wrong() -> None:
    """Catches a oneOf taken for anyOf though a value satisfies two of its branches."""
    kinds: list[Any] = [
        {}, S, {"type": "integer"}, {"type": "number"}, {"const": 1}, {"const": 1.0},
        {"enum": [1, "a"]},
        {"enum": ["b"]}, {"type": ["string", "null"]}, {"type": "integer", "minimum": 3},
        {"type": "number", "maximum": 2}, {"type": "object"}, {"type": "array"}, {"const": None},
        {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
        {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]},
        {"type": "object", "properties": {"k": {"const": "b"}}}, {"$ref": "#/$defs/s"},
        {"anyOf": [S, {"type": "null"}]}, {"allOf": [S, {}]}, {"oneOf": [{"const": 3}, S]},
        {"required": ["j"]}, False, True,
    ]  # fmt: skip
    root = {"$defs": {"s": S}}
    proved = 0
    for one, other in combinations(kinds, 2):
        if disjoint(one, other, root):
            proved += 1
            both = {"allOf": [one, other], **root}
            valid = [v for v in VALUES if jsonschema.Draft202012Validator(both).is_valid(v)]
            assert not valid, (one, other, valid)
    assert proved > 100


@pytest.mark.parametrize(
    "pattern", ["^a|b$", "^(a|b)$", "a", "^a", "a$", "[|]b", r"^\|a|c\$$", "^a$|^b$"]
)
def test_whole_pattern(pattern: str) -> None:
    """Catches an anchor that binds to all alternatives: `^a|b$` is not `^(a|b)$`."""
    whole_text = re.compile(whole(portable(pattern, "here")))
    for text in ("a", "b", "ab", "xa", "bx", "xb", "|a", "|b", "c$", "xc$", "", "a|b"):
        assert bool(whole_text.fullmatch(text)) == bool(re.search(pattern, text)), text


def test_productive() -> None:
    """Catches a schema that needs itself, whose text would never end, and one refused in vain."""
    root = {"$defs": {
        "own": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/own"}}},
        "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    }}  # fmt: skip
    own, tree = {"$ref": "#/$defs/own"}, {"$ref": "#/$defs/tree"}
    for good in ({}, True, tree, {"anyOf": [own, S]}, {"properties": {"a": own}}, {"const": 1}):
        assert productive(good, root), good
    for bad in (own, False, {"anyOf": [own]}, {"allOf": [S, own]}, {"type": "array", "minItems": 1,
                                                                    "items": own}):  # fmt: skip
        assert not productive(bad, root), bad


def test_proofs_stay_short() -> None:
    """Catches a proof that follows every path of a schema: two references a level, 40 levels."""
    deep = {f"d{k}": {"type": "object", "required": ["x", "y"], "properties": {
        "x": {"$ref": f"#/$defs/d{k + 1}"}, "y": {"$ref": f"#/$defs/d{k + 1}"},
    }} for k in range(40)}  # fmt: skip
    top = {"$ref": "#/$defs/d0"}
    assert productive(top, {"$defs": {**deep, "d40": S}})
    assert not productive(top, {"$defs": {**deep, "d40": False}})
    assert disjoint(top, {"$ref": "#/$defs/d1"}, {"$defs": {**deep, "d40": {"const": 1}}})
    wide = {"allOf": [{"anyOf": [{"minLength": n} for n in range(30)]} for _ in range(30)]}
    with pytest.raises(InvalidRequest, match="too many combinations"):
        [*SchemaReader(wide, None).alternatives((wide,))]


def levels(count: int, keyword: str, ways: str) -> Any:
    """A value of two, behind so many levels that name each of `ways` as the next one."""
    defs: dict[str, Any] = {
        f"{way}{k}": {keyword: [{"$ref": f"#/$defs/{to}{k + 1}"} for to in ways]}
        for k in range(count)
        for way in ways
    }
    defs |= {f"{way}{count}": {"enum": ["x", "y"]} for way in ways}
    return {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{ways[0]}0"}}, "$defs": defs}


@pytest.mark.parametrize(("keyword", "ways"), [("anyOf", "a"), ("anyOf", "aa"), ("anyOf", "ab")])
def test_work_grows_with_the_schema_alone(
    keyword: str, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches seconds for 24 levels of two references each: a way through is followed twice."""
    spent, spend = [0], SchemaReader._spend

    def counted(reader: SchemaReader, steps: int) -> None:
        spent[0] += steps
        spend(reader, steps)

    monkeypatch.setattr(SchemaReader, "_spend", counted)
    work = []
    for count in (12, 24, 48):
        spent[0] = 0
        assert questions_of(levels(count, keyword, ways)) == [Choice("a", "a", ["x", "y"])]
        work.append(spent[0])
    first, second, third = work
    assert second <= 2.2 * first and third <= 2.2 * second and third < 100 * 48
    # All ways at once is too large for the grammar library, and is refused as soon.
    spent[0] = 0
    with pytest.raises(InvalidRequest):
        questions_of(levels(24, "allOf", "ab"))
    assert spent[0] < 250 * 24


@pytest.mark.fault("R C1")
def test_a_chain_of_references_takes_linear_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches 2^48 proofs, and 2,000^2, for a schema of a few kilobytes."""
    spent, spend = [0], SchemaReader._spend

    def counted(reader: SchemaReader, steps: int) -> None:
        spent[0] += steps
        spend(reader, steps)

    named = References._named

    def counted_name(references: References, node: Any) -> Any:
        spent[0] += 1
        return named(references, node)

    monkeypatch.setattr(SchemaReader, "_spend", counted)
    monkeypatch.setattr(References, "_named", counted_name)
    work = []
    for count in (48, 500, 2000):
        spent[0] = 0
        schema = levels(count, "allOf", "aa")
        assert accepted_schema(schema, "x")
        work.append(spent[0] / count)
        assert accepted_schema({"$ref": "#/$defs/a0", "$defs": schema["$defs"]}, "x")
    assert max(work) <= 1.2 * min(work) and max(work) < 20


@pytest.mark.fault("R C1")
@pytest.mark.parametrize("leaf", [{"type": "object"}, {"enum": ["x", "y"]}, False])
def test_two_ways_a_level_end_within_the_budget(leaf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches 2^48 ways through two definitions a level, each of which names both of the next.

    The counts are what was measured: with 48 levels each place is followed through all below it.
    """
    spent, spend = [0], SchemaReader._spend

    def counted(reader: SchemaReader, steps: int) -> None:
        spent[0] += steps
        spend(reader, steps)

    monkeypatch.setattr(SchemaReader, "_spend", counted)
    for count in (48, 500, 2000):
        spent[0] = 0
        schema = levels(count, "allOf", "ab")
        schema["$defs"] |= {f"{way}{count}": leaf for way in "ab"}
        with contextlib.suppress(InvalidRequest):
            checked_schema(schema)
        assert spent[0] <= 3 * EFFORT


def test_a_schema_that_is_a_part_of_itself() -> None:
    """Catches branches that go in circles, and one that is lost because another was cut there."""
    root = {"$defs": {
        "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"const": 1}]},
        "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": 2}]},
        "own": {"$ref": "#/$defs/own"},
    }}  # fmt: skip
    for name in "ab":
        reader = SchemaReader(root, within_bounds)
        found = {node["const"] for flat in reader.alternatives(({"$ref": f"#/$defs/{name}"},))
                 for node in flat}  # fmt: skip
        assert found == {1, 2}
    assert not productive({"$ref": "#/$defs/own"}, root)
    assert [*SchemaReader(root, None).alternatives(({"$ref": "#/$defs/own"},))] == []


def test_values_are_those_of_a_validator() -> None:
    """Catches a listed value that is kept or dropped against its schema."""
    schemas: list[Any] = [
        {"type": ["integer", "null"]}, {"minimum": 1, "exclusiveMaximum": 3}, {"multipleOf": 0.5},
        {"minLength": 1, "pattern": "b"}, {"enum": [1.0, "a", [1]]}, {"const": {"k": "a"}},
        {"items": {"type": "integer"}, "maxItems": 1}, {"required": ["k"]}, {"minProperties": 2},
        {"prefixItems": [{"type": "string"}]}, {"properties": {"k": {"type": "string"}}},
        {"patternProperties": {"^j$": {"maximum": 1}}, "additionalProperties": {"const": "a"}},
        {"anyOf": [S, {"type": "array"}]}, {"allOf": [S, {"maxLength": 0}]}, {"$ref": "#/$defs/s"},
    ]  # fmt: skip
    root = {"$defs": {"s": S}}
    for one, other in combinations(schemas, 2):
        validator = jsonschema.Draft202012Validator({"allOf": [one, other], **root})
        reader = SchemaReader(root, within_bounds)
        for value in VALUES:
            found = any(reader.allowed(value, flat) for flat in reader.alternatives((one, other)))
            assert found == validator.is_valid(value), (one, other, value)
