"""What can be proved about JSON schemas: that two exclude one another, that one can be satisfied.

Both err on the safe side: "not disjoint" means not proved so. Knows where a reference leads.
Knows nothing about grammars; schemas come in checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dgemma.errors import InvalidRequest

DEEPEST = 12
"""References that a proof follows."""


def resolve(target: str, root: Mapping[str, Any]) -> Any:
    """The part of a schema that a pointer such as `#/$defs/x` names.

    Raises:
        InvalidRequest: there is none.
    """
    found: Any = root
    for part in target.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise InvalidRequest(f"$ref {target!r} leads nowhere in the schema; correct it")
    return found


def disjoint(one: Any, other: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether it is proved that no value satisfies both."""
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping) or depth > DEEPEST:
        return False
    for a, b in ((one, other), (other, one)):
        if "$ref" in a and disjoint(resolve(a["$ref"], root), b, root, depth + 1):
            return True
        for key in ("anyOf", "oneOf"):
            if key in a and all(disjoint(branch, b, root, depth + 1) for branch in a[key]):
                return True
        if any(disjoint(branch, b, root, depth + 1) for branch in a.get("allOf", ())):
            return True
    first, second = _values(one), _values(other)
    if first is not None and second is not None:
        return first.isdisjoint(second)
    if _kinds(one).isdisjoint(_kinds(other)):
        return True
    if _kinds(one) & _kinds(other) <= {"object"}:
        return _told_apart(one, other, root, depth)
    if _kinds(one) & _kinds(other) <= {"integer", "fraction"}:
        low = max(_low(one), _low(other))
        high = min(_high(one), _high(other))
        return low > high
    return False


def _told_apart(one: Any, other: Any, root: Mapping[str, Any], depth: int) -> bool:
    """Whether a key that one of two objects must have cannot be right for both."""
    for key in {*one.get("required", ()), *other.get("required", ())}:
        first, second = _property(one, key), _property(other, key)
        if disjoint(first, second, root, depth + 1):
            return True
    return False


def _property(node: Mapping[str, Any], key: str) -> Any:
    named = node.get("properties", {})
    if key in named:
        return named[key]
    return True if node.get("patternProperties") else node.get("additionalProperties", True)


def _values(node: Mapping[str, Any]) -> set[str] | None:
    """The only values a schema has, in one form each; None where they are not listed."""
    if "const" in node:
        return {_form(node["const"])}
    return {_form(value) for value in node["enum"]} if "enum" in node else None


def _form(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """The value with 1.0 as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


EVERY = frozenset(("null", "boolean", "integer", "fraction", "string", "array", "object"))


def _kinds(node: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of value that a schema's own type, const and enum leave."""
    kinds = EVERY
    if "type" in node:
        names = [node["type"]] if isinstance(node["type"], str) else node["type"]
        kinds = frozenset(names) - {"number"}
        kinds |= {"integer", "fraction"} if "number" in names else set()
    listed = [node["const"]] if "const" in node else node.get("enum")
    return kinds if listed is None else kinds & {_kind(value) for value in listed}


def _low(node: Mapping[str, Any]) -> float:
    bounds = [node.get("minimum"), node.get("exclusiveMinimum")]
    return max((float(bound) for bound in bounds if bound is not None), default=float("-inf"))


def _high(node: Mapping[str, Any]) -> float:
    bounds = [node.get("maximum"), node.get("exclusiveMaximum")]
    return min((float(bound) for bound in bounds if bound is not None), default=float("inf"))


def productive(node: Any, root: Mapping[str, Any]) -> bool:
    """Whether some finite value may satisfy a schema; False only where that is proved wrong."""
    return _Productive(root).of(node)


class _Productive:
    """A proof that follows no reference twice: a schema that needs itself has no finite value."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: set[str] = set()

    def of(self, node: Any) -> bool:
        if not isinstance(node, Mapping):
            return node is not False
        if "const" in node or "enum" in node:
            return True
        if "$ref" in node:
            target = node["$ref"]
            if target in self._open:
                return False
            self._open.add(target)
            good = self.of(resolve(target, self._root))
            self._open.discard(target)
            if not good:
                return False
        if not all(self.of(branch) for branch in node.get("allOf", ())):
            return False
        for key in ("anyOf", "oneOf"):
            if key in node and not any(self.of(branch) for branch in node[key]):
                return False
        kinds = _kinds(node)
        if kinds - {"object", "array"}:
            return True
        return ("object" in kinds and self._object(node)) or ("array" in kinds and self._list(node))

    def _object(self, node: Mapping[str, Any]) -> bool:
        return all(self.of(_property(node, key)) for key in node.get("required", ()))

    def _list(self, node: Mapping[str, Any]) -> bool:
        items = [*node.get("prefixItems", ())][: node.get("minItems", 0)]
        if node.get("minItems", 0) > len(items):
            items.append(node.get("items", True))
        return all(self.of(item) for item in items)


def strings_in(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from strings_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings_in(part)
