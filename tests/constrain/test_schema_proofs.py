"""What is proved about schemas, and patterns that engines agree about."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import jsonschema
import pytest

from dgemma.constrain.regex import portable, whole
from dgemma.constrain.schema_proofs import SchemaReader, within_bounds

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
