"""JSON schemas that can be kept to in full: checks one, and refuses by name what could not be.

What passes here is enforced to the letter: a finished text satisfies the schema as a validator
for Draft 2020-12 reads it, floating-point numbers included. What a grammar cannot express, what
the grammar library would pass over in silence, and what nothing satisfies is refused with the
place. Knows nothing about tokens.
Source: JSON Schema Draft 2020-12, core and validation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from dgemma.constrain.regex import portable
from dgemma.constrain.schema_proofs import disjoint, productive, resolve, strings_in
from dgemma.errors import InvalidRequest, nearest

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
}  # fmt: skip
NOTES = {
    "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "$anchor",
}  # fmt: skip
"""Keywords that say nothing about what is valid."""
DIALECTS = ("draft/2020-12/", "draft/2019-09/", "draft-07/", "draft-06/")
REMEDIES = {
    "nullable": 'write "type": [..., "null"]',
    "not": "name what is allowed instead, with enum or anyOf",
    "if": "use anyOf with a const in each branch",
    "then": "use anyOf with a const in each branch",
    "else": "use anyOf with a const in each branch",
    "uniqueItems": "leave it out and check the list yourself",
    "contains": "use prefixItems, or check the list yourself",
    "propertyNames": "use patternProperties with additionalProperties false",
    "dependentRequired": "use anyOf with required in each branch",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$id": "use references of the form #/$defs/name",
    "x-guidance": "leave it out",
    "additionalItems": "use items after prefixItems",
}
NEVER_WRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters that JSON has no short escape for: the library would leave them out of a literal."""
_SPELT_OUT = re.compile(r"\\(?:[0v]|x[01]|u00[01])" + f"|{NEVER_WRITTEN.pattern}")
_CLASS_OR_ESCAPED = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\[^0vxu]|\\(?:x0[89acd]|u000[89acd])", re.I)
LARGEST = 1 << 53
"""Bounds beyond this are not exact as floating-point numbers."""


def checked_schema(schema: Mapping[str, Any] | str | bool) -> dict[str, Any]:
    """The schema with annotations left out and everything said in the library's terms.

    Args:
        schema: an object, JSON text of one, or True for any JSON value.

    Raises:
        InvalidRequest: it is no schema, or a part could not be kept to; names the place.
    """
    root: Any = schema
    if isinstance(schema, str):
        try:
            root = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"json_schema is no JSON ({error}); send an object") from None
    if root is True:
        return {}
    try:
        json.dumps(root, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"json_schema is no JSON ({error}); send an object") from None
    if not isinstance(root, Mapping):
        raise InvalidRequest(f"json_schema must be an object or True; got {root!r}")
    checker = _Checker(root)
    checked = checker.schema(root, "#")
    checker.references()
    for place, node in checker.places.items():
        if not isinstance(node, bool) and not productive(node, checker.root):
            raise InvalidRequest(
                f"json_schema {place}: no finite value satisfies it (it needs itself, or its "
                "parts contradict one another); make the recursive property optional or nullable"
            )
    assert isinstance(checked, dict)
    return checked


class _Checker:
    """Walks a schema once.

    Attributes:
        places: every subschema by its pointer, as it was given.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.places: dict[str, Any] = {}
        self._refs: dict[str, str] = {}  # target -> where it is used

    def refuse(self, place: str, what: str, remedy: str) -> InvalidRequest:
        """The error for a place."""
        return InvalidRequest(f"json_schema {place}: {what}; {remedy}")

    def references(self) -> None:
        """Raises for a reference that leads to no subschema."""
        for target, place in self._refs.items():
            if target not in self.places:
                known = nearest(target, self.places)
                raise self.refuse(place, f"$ref {target!r} leads to no schema{known}", "correct it")

    def schema(self, node: Any, place: str) -> Any:
        """A subschema, checked."""
        if isinstance(node, bool):
            self.places[place] = node
            return node
        if not isinstance(node, Mapping):
            raise self.refuse(place, f"{node!r} is no schema", "use an object or a boolean")
        self.places[place] = node
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key in NOTES or (key.startswith("x-") and key != "x-guidance"):
                continue
            rule = _RULES.get(key)
            if rule is None:
                self._meta(key, value, place)
            else:
                rule(self, key, value, place, out)
        _numbers(self, node, place, out)
        _objects(self, node, place)
        for low, high in (("minLength", "maxLength"), ("minItems", "maxItems"),
                          ("minProperties", "maxProperties")):  # fmt: skip
            if node.get(low, 0) > node.get(high, math.inf):
                raise self.refuse(place, f"{low} is above {high}", "nothing satisfies that")
        if "oneOf" in out:
            self._one_of(node, place, out)
        return out

    def _meta(self, key: str, value: Any, place: str) -> None:
        if key == "$schema" and any(name in str(value) for name in DIALECTS):
            return
        if key in ("$id", "id") and place == "#":
            return
        if key == "uniqueItems" and value is False:
            return
        if key in REMEDIES:
            raise self.refuse(place, f"keyword {key!r} is not supported", REMEDIES[key])
        near = nearest(key, [*_RULES, *NOTES])
        raise self.refuse(
            place, f"keyword {key!r} is not known{near}", "leave it out, or prefix a note with x-"
        )

    def _one_of(self, node: Mapping[str, Any], place: str, out: dict[str, Any]) -> None:
        """Branches of which no two can hold at once are the same as anyOf."""
        branches = node["oneOf"]
        for k, one in enumerate(branches):
            for other in branches[k + 1 :]:
                if not disjoint(one, other, self.root):
                    raise self.refuse(
                        place,
                        "two branches of oneOf may hold at once",
                        "use anyOf, or give each a required property with a const of its own",
                    )
        if "anyOf" in out:
            out["allOf"] = [*out.get("allOf", []), {"anyOf": out.pop("oneOf")}]
        else:
            out["anyOf"] = out.pop("oneOf")

    # -- one method for each kind of keyword ------------------------------------------------------

    def type(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            raise self.refuse(place, f"type is {value!r}", f"use one or more of {', '.join(TYPES)}")
        for name in names:
            if name not in TYPES:
                near = nearest(name, TYPES) if isinstance(name, str) else ""
                raise self.refuse(
                    place, f"{name!r} is no type{near}", f"use one or more of {', '.join(TYPES)}"
                )
        out[key] = value

    def whole_number(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.refuse(place, f"{key} is {value!r}", "use a whole number of 0 or more")
        if not 0 <= value < 1 << 31:
            raise self.refuse(place, f"{key} is {value!r}", "use a whole number of 0 or more")
        out[key] = int(value)

    def bound(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(place, f"{key} is {value!r}", "use a number")
        if abs(value) > LARGEST:
            raise self.refuse(place, f"{key} is beyond 2^53", "leave it out or use a nearer bound")
        out[key] = value

    def multiple(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.refuse(place, f"{key} is {value!r}", "use a number above 0")
        if Fraction(str(value)) != Fraction(value):
            raise self.refuse(
                place,
                f"multipleOf {value!r} has no exact binary form, so validators disagree about it",
                "count in the smallest unit (cents) or use a string with a pattern",
            )
        if not 2.0**-20 <= value <= 2.0**31:
            raise self.refuse(place, f"multipleOf {value!r}", "use 2^-20 to 2^31")
        out[key] = int(value) if value == int(value) else value

    def pattern(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if not isinstance(value, str):
            raise self.refuse(place, f"pattern is {value!r}", "use a text")
        out[key] = self._portable(value, place, "pattern")

    def _portable(self, pattern: str, place: str, key: str) -> str:
        if _SPELT_OUT.search(_CLASS_OR_ESCAPED.sub("", pattern)):
            raise self.refuse(place, f"{key} has a control character", "leave it out")
        return portable(pattern, f"json_schema {place}/{key}")

    def format(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if value not in FORMATS:
            near = nearest(value, FORMATS) if isinstance(value, str) else ""
            raise self.refuse(
                place,
                f"format {value!r} is not enforced{near}",
                f"use a pattern, or one of {', '.join(sorted(FORMATS))}",
            )
        out[key] = value

    def values(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if key == "enum" and (not isinstance(value, list) or not value):
            raise self.refuse(place, f"enum is {value!r}", "list at least one value")
        if any(NEVER_WRITTEN.search(text) for text in strings_in(value)):
            raise self.refuse(place, f"{key} has a control character", "leave it out")
        out[key] = value

    def names(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.refuse(place, f"required is {value!r}", "use a list of names")
        out[key] = value

    def one(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if key == "items" and isinstance(value, list):
            raise self.refuse(place, "items is a list", "use prefixItems")
        out[key] = self.schema(value, f"{place}/{key}")

    def several(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if not isinstance(value, list) or not value:
            raise self.refuse(place, f"{key} is {value!r}", "use a list of schemas")
        out[key] = [self.schema(node, f"{place}/{key}/{k}") for k, node in enumerate(value)]

    def named(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if not isinstance(value, Mapping):
            raise self.refuse(place, f"{key} is {value!r}", "use an object of schemas")
        out[key] = {}
        for name, node in value.items():
            escaped = name.replace("~", "~0").replace("/", "~1")
            word = name
            if key == "patternProperties":
                word = self._portable(name, place, key)
            out[key][word] = self.schema(node, f"{place}/{key}/{escaped}")

    def ref(self, key: str, value: Any, place: str, out: dict[str, Any]) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise self.refuse(place, f"$ref {value!r} is not within the schema", "use #/$defs/name")
        try:
            resolve(value, self.root)
        except InvalidRequest as error:
            raise InvalidRequest(f"json_schema {place}: {error}") from None
        self._refs.setdefault(value, place)
        out[key] = value


def _numbers(checker: _Checker, node: Mapping[str, Any], place: str, out: dict[str, Any]) -> None:
    """What makes floating-point readers agree: exact multiples, few digits at open bounds."""
    kinds = [out["type"]] if isinstance(out.get("type"), str) else out.get("type")
    step = out.get("multipleOf")
    if isinstance(step, int):
        if kinds is None:
            raise checker.refuse(place, "multipleOf without a type", 'add "type": "integer"')
        if "number" in kinds:  # a multiple of a whole number is a whole number
            kept = [kind for kind in kinds if kind not in ("number", "integer")]
            out["type"] = [*kept, "integer"]
        return
    open_bounds = [out[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in out]
    if step is None and open_bounds and (kinds is None or "number" in kinds):
        whole = max(len(str(int(abs(bound)))) for bound in open_bounds)
        numbers = [out[k] for k in _BOUNDS if k in out]
        fine = max((_decimals(bound) for bound in numbers), default=0)
        digits = min(max(9, fine + 3), 15 - whole)
        if digits < max(fine, 1):
            raise checker.refuse(
                place, "an open bound with too many digits", "use minimum and maximum"
            )
        out["multipleOf"] = float(f"1e-{digits}")


def _decimals(bound: int | float) -> int:
    """Digits after the point that a bound needs."""
    denominator = Fraction(str(bound)).denominator
    return next(digits for digits in range(400) if 10**digits % denominator == 0)


def _objects(checker: _Checker, node: Mapping[str, Any], place: str) -> None:
    """Keys that a grammar cannot count or tell apart."""
    least = node.get("minProperties", 0) - len(set(node.get("required", ())))
    if least > 1:
        raise checker.refuse(
            place,
            "minProperties asks for several keys that are not named, which may come out equal",
            "name them in properties and required",
        )
    patterns = node.get("patternProperties", {})
    if patterns and node.get("additionalProperties") is not False:
        raise checker.refuse(
            place, "patternProperties beside other keys", "add additionalProperties: false"
        )
    if len(patterns) > 1 and any("\\" in pattern for pattern in patterns):
        raise checker.refuse(
            place, "several patternProperties with classes such as \\d", "spell them out: [0-9]"
        )


_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_Rule = Callable[[_Checker, str, Any, str, dict[str, Any]], None]
_RULES: dict[str, _Rule] = {
    "type": _Checker.type,
    "enum": _Checker.values,
    "const": _Checker.values,
    "multipleOf": _Checker.multiple,
    "pattern": _Checker.pattern,
    "format": _Checker.format,
    "required": _Checker.names,
    "$ref": _Checker.ref,
    **dict.fromkeys(_BOUNDS, _Checker.bound),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        _Checker.whole_number,
    ),
    **dict.fromkeys(("items", "additionalProperties"), _Checker.one),
    **dict.fromkeys(("anyOf", "allOf", "oneOf", "prefixItems"), _Checker.several),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _Checker.named),
}
