"""The one front end for JSON schemas: checks a schema, and refuses by name what could not be kept.

Answers in JSON, strict tools and decisions all read what comes out of here. What passes is
enforced to the letter: a finished text satisfies the schema as a validator for Draft 2020-12
reads it, floating-point numbers included. What a grammar cannot express, what the grammar library
would pass over in silence, and what nothing satisfies is refused with the place.
Source: JSON Schema Draft 2020-12, core and validation; `docs/json_schema.md` of llguidance 1.9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import combinations
from typing import Any

from dgemma.constrain.formats import FORMATS, OF_NUMBERS
from dgemma.constrain.guidance import check, llguidance
from dgemma.constrain.limits import (
    COUNTED_PROPERTIES,
    KEY_MATCHES,
    KEY_PATTERNS,
    LITERAL,
    MULTIPLE,
    PATTERN,
    PROPERTIES,
    SUBSCHEMAS,
    VALUES,
)
from dgemma.constrain.regex import pieces, portable
from dgemma.constrain.schema_keywords import DIALECTS, DRAFT_4, NOTES, REMEDIES, TYPES
from dgemma.constrain.schema_numbers import LARGEST, inexact, is_exact, is_number, states, told
from dgemma.constrain.schema_proofs import (
    COMPARED,
    COUNTED,
    SchemaReader,
    limits,
    required,
    strings_in,
    within_bounds,
)
from dgemma.constrain.schema_references import References, escaped
from dgemma.constrain.schema_sizes import check_conjunctions, check_depth
from dgemma.errors import InvalidRequest, nearest

NEVER_WRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters that JSON has no short escape for: the library would leave them out of a literal."""
SPACING = {
    "whitespace_flexible": True, "whitespace_pattern": " ?", "json_allowed_escapes": 'nrbtf\\"',
}  # fmt: skip
"""Between the parts of JSON a blank may stand or not: the model's own habit costs it nothing, and
no room is lost to white space without end. Without \\u every text has one spelling: else a key that
is not a property's name as it is written could be one as it is read, and take its place."""


def checked_schema(schema: Any, name: str = "json_schema") -> dict[str, Any]:
    """The schema with annotations left out and everything said in the library's terms.

    Args:
        schema: an object, JSON text of one, or True for any JSON value.
        name: what the schema belongs to, for messages.

    Raises:
        InvalidRequest: it is not a schema, or a part could not be kept to; names the place.
    """
    try:
        root = json.loads(schema) if isinstance(schema, str) else schema
        json.dumps(root, ensure_ascii=False, allow_nan=False).encode("utf-8")
        if root is True:
            return {}
        if not isinstance(root, Mapping):
            raise InvalidRequest(f"{name} must be an object or True; got {root!r}")
        return _Checker(name).run(root)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} is not JSON ({error}); send an object") from None
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deep; use $ref to $defs") from None


def accepted_schema(schema: Any, name: str) -> dict[str, Any]:
    """As `checked_schema`; the library's own refusals are raised as well."""
    checked = checked_schema(schema, name)
    check(name, json_grammar(checked))
    return checked


def json_grammar(checked: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that a checked schema allows, in the library's form."""
    source: str = llguidance().LLMatcher.grammar_from_json_schema(
        json.dumps(checked, ensure_ascii=False), overrides=SPACING
    )
    return source


class _Checker:
    """Walks a schema once. Its rules say what becomes of the value of a keyword."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._checked: dict[str, Any] = {}  # subschemas by where they are in the schema as given
        self._refs: list[tuple[str, dict[str, Any]]] = []
        self._one_of: list[tuple[str, list[Any]]] = []
        self._draft_4 = False

    def run(self, root: Mapping[str, Any]) -> dict[str, Any]:
        """The checked schema."""
        self._draft_4 = DRAFT_4 in str(root.get("$schema", ""))
        checked: dict[str, Any] = self.schema(root, "#")
        references = References(self._checked)
        for place, node in self._refs:
            if references.find(node["$ref"]) is None:
                near = nearest(node["$ref"], self._checked)
                raise self.refuse(place, f"$ref {node['$ref']!r} leads nowhere{near}", "correct it")
        followed = references.follow(checked, [node for _, node in self._refs])
        check_depth(checked, followed, self._name)
        check_conjunctions(checked, self._checked.values(), self._name)
        strict, lenient = SchemaReader(checked, within_bounds), SchemaReader(checked, None)
        for place, branches in self._one_of:
            for pair in combinations(branches, 2):
                if strict.possible(pair):
                    raise self.refuse(
                        place, "two branches of oneOf may hold at once",
                        "use anyOf, or give each a required property with a const of its own",
                    )  # fmt: skip
        for place, node in self._checked.items():
            if node is not False and not lenient.possible((node,)):
                raise self.refuse(
                    place, "no finite value satisfies it (it needs itself, or its parts "
                    "contradict one another)", "make the recursive property optional or nullable",
                )  # fmt: skip
        return checked

    def refuse(self, place: str, what: str, remedy: str) -> InvalidRequest:
        """The error for a place."""
        return InvalidRequest(f"{self._name} {place}: {what}; {remedy}")

    def schema(self, node: Any, place: str) -> Any:
        """A subschema, checked."""
        self._checked[place] = node
        SUBSCHEMAS.check(len(self._checked), self._name)
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            raise self.refuse(place, f"{node!r} is not a schema", "use an object or a boolean")
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key in RULES:
                out[key] = RULES[key](self, key, value, place)
            elif key not in NOTES and not (key.startswith("x-") and key != "x-guidance"):
                self._unknown(key, value, place)
        self._formats(place, out)
        self._numbers(place, out)
        self._objects(place, out)
        for kind, what in COUNTED.items():
            least, most = limits((out,), kind)
            if least > most:
                raise self.refuse(place, f"min{what} is above max{what}", "nothing satisfies that")
        if "$ref" in out:
            self._refs.append((place, out))
        if "oneOf" in out:  # no two branches hold at once, so it is the same as anyOf
            branches = {"anyOf": out.pop("oneOf")}
            self._one_of.append((place, branches["anyOf"]))
            out |= {"allOf": [*out.get("allOf", []), branches]} if "anyOf" in out else branches
        if out.pop("nullable", False):
            out = {"anyOf": [out, {"type": "null"}]}
        self._checked[place] = out
        return out

    def _numbers(self, place: str, out: dict[str, Any]) -> None:
        """What makes floating-point readers agree: exact multiples, few digits at open bounds."""
        kinds = [out["type"]] if isinstance(out.get("type"), str) else out.get("type")
        for end in ("Minimum", "Maximum"):
            is_open = out.get(f"exclusive{end}")
            if isinstance(is_open, bool):  # in draft 4
                del out[f"exclusive{end}"]
                if is_open and end.lower() in out:
                    out[f"exclusive{end}"] = out.pop(end.lower())
        step = out.get("multipleOf")
        if isinstance(step, int):
            if kinds is None:
                raise self.refuse(place, "multipleOf without a type", 'add "type": "integer"')
            if "number" in kinds:  # a multiple of a whole number is a whole number
                kept = [kind for kind in kinds if kind not in ("number", "integer")]
                out["type"] = [*kept, "integer"]
            return
        open_bounds = [out[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in out]
        if step is None and open_bounds and (kinds is None or "number" in kinds):
            whole = max(len(str(int(abs(bound)))) for bound in open_bounds)
            fine = max(_decimals(out[key]) for key in COMPARED if key in out)
            digits = min(max(9, fine + 3), 15 - whole)
            if digits < max(fine, 1):
                raise self.refuse(
                    place, "an open bound with too many digits", "use minimum and maximum"
                )
            out["multipleOf"] = float(f"1e-{digits}")

    def _objects(self, place: str, out: dict[str, Any]) -> None:
        """Keys that a grammar cannot count or tell apart."""
        if out.get("minProperties", 0) - len(required((out,))) > 1:
            raise self.refuse(
                place, "minProperties asks for several keys that are not named, which may come "
                "out equal", "name them in properties and required",
            )  # fmt: skip
        patterns, where = out.get("patternProperties", {}), f"{self._name} {place}"
        names = {*out.get("properties", ()), *out.get("required", ())}
        PROPERTIES.check(len(names), where)
        KEY_PATTERNS.check(len(patterns), where)
        KEY_MATCHES.check(len(names) * len(patterns), where)
        if out.get("minProperties", 0) > len(required((out,))) or "maxProperties" in out:
            COUNTED_PROPERTIES.check(len(names) - len(required((out,))), where)
        if patterns and out.get("additionalProperties") is not False:
            raise self.refuse(
                place, "patternProperties beside other keys", "add additionalProperties: false"
            )
        if len(patterns) > 1 and any("\\" in pattern for pattern in patterns):
            raise self.refuse(
                place, "several patternProperties with classes such as \\d", "spell them out: [0-9]"
            )

    def _unknown(self, key: str, value: Any, place: str) -> None:
        """Raises for a keyword without a rule, unless it changes nothing."""
        if key == "$schema" and any(name in str(value) for name in DIALECTS):
            return
        if key == "$schema":
            raise self.refuse(
                place, f"keyword '$schema' is {value!r}, which is not read", "use Draft 2020-12"
            )
        if (key in ("$id", "id") and place == "#") or (key == "uniqueItems" and value is False):
            return
        if key in REMEDIES:
            raise self.refuse(place, f"keyword {key!r} is not supported", REMEDIES[key])
        near = nearest(key, [*RULES, *NOTES])
        raise self.refuse(
            place, f"keyword {key!r} is not known{near}", "leave it out, or prefix a note with x-"
        )

    # -- rules -------------------------------------------------------------------------------------

    def _form(self, good: bool, key: str, value: Any, place: str, remedy: str) -> None:
        if not good:
            raise self.refuse(place, f"{key} is {value!r}", remedy)

    def _type(self, key: str, value: Any, place: str) -> Any:
        names = [value] if isinstance(value, str) else value
        remedy = f"use one or more of {', '.join(TYPES)}"
        self._form(isinstance(names, list) and bool(names), key, value, place, remedy)
        for number, name in enumerate(names):
            if name in names[:number]:
                raise self.refuse(place, f"type names {name!r} twice", "name it once")
            if name not in TYPES:
                near = nearest(name, TYPES) if isinstance(name, str) else ""
                raise self.refuse(place, f"{name!r} is not a type{near}", remedy)
        return value

    def _nullable(self, key: str, value: Any, place: str) -> Any:
        self._form(isinstance(value, bool), key, value, place, "use true or false")
        return value

    def _count(self, key: str, value: Any, place: str) -> Any:
        good = is_number(value) and value == int(value) and 0 <= value < 1 << 31
        self._form(good, key, value, place, "use a whole number of 0 or more")
        return int(value)

    def _bound(self, key: str, value: Any, place: str) -> Any:
        if self._draft_4 and key.startswith("exclusive"):
            self._form(isinstance(value, bool), key, value, place, "draft 4 has true or false here")
            return value
        remedy = "use a number" + " (true and false are of draft 4)" * isinstance(value, bool)
        self._form(is_number(value), key, value, place, remedy)
        if abs(value) > LARGEST:
            raise self.refuse(place, f"{key} is beyond 2^53", "leave it out or use a nearer bound")
        if not is_exact(value):
            raise self.refuse(
                place, f"{key} {value!r} is finer than all readers of numbers can tell", "round it"
            )
        return told(value)

    def _multiple(self, key: str, value: Any, place: str) -> Any:
        self._form(is_number(value) and value > 0, key, value, place, "use a number above 0")
        if Fraction(str(value)) != Fraction(value):
            raise self.refuse(
                place, f"{key} {value!r} has no exact binary form, so validators disagree about it",
                "count in the smallest unit (cents) or use a string with a pattern",
            )  # fmt: skip
        MULTIPLE.check(states([value]), f"{self._name} {place}")
        return told(value)

    def _pattern(self, key: str, value: Any, place: str) -> str:
        self._form(isinstance(value, str), key, value, place, "use a text")
        PATTERN.check(len(value.encode("utf-8")), f"{self._name} {place}/{key}")
        if any(map(_is_control, pieces(value))):
            raise self.refuse(place, f"{key} has a control character", "leave it out")
        return portable(value, f"{self._name} {place}/{key}")

    def _format(self, key: str, value: Any, place: str) -> Any:
        self._form(isinstance(value, str), key, value, place, "use the name of a format")
        return value

    def _formats(self, place: str, out: dict[str, Any]) -> None:
        """A format of texts as what it means; of other values it says nothing."""
        name = out.pop("format", None)
        if name is None or name in OF_NUMBERS or "string" not in out.get("type", ("string",)):
            return
        if name not in FORMATS:
            raise self.refuse(
                place, f"format {name!r} is not enforced{nearest(name, FORMATS)}",
                f"use a pattern, or one of {', '.join(sorted(FORMATS))}",
            )  # fmt: skip
        known = FORMATS[name]
        parts: list[dict[str, Any]] = [{"pattern": f"^({known.whole})$"}]
        parts += [{"pattern": f"^({known.also})$"}] * bool(known.also)
        parts += [{"maxLength": known.longest}] * bool(known.longest)
        if len(parts) == 1 and "pattern" not in out:
            out |= parts[0]
        else:
            out["allOf"] = [*out.get("allOf", []), *parts]

    def _values(self, key: str, value: Any, place: str) -> Any:
        good = key == "const" or (isinstance(value, list) and bool(value))
        self._form(good, key, value, place, "list at least one value")
        values, where = value if key == "enum" else [value], f"{self._name} {place}/{key}"
        VALUES.check(len(values), where)
        for one in values:
            LITERAL.check(len(json.dumps(one, ensure_ascii=False).encode("utf-8")), where)
        if any(NEVER_WRITTEN.search(text) for text in strings_in(value)):
            raise self.refuse(place, f"{key} has a control character", "leave it out")
        for number in inexact(value):
            raise self.refuse(
                place, f"{key} has the number {number!r}, which readers of numbers would round",
                "use a string, or fewer digits (all whole numbers to 2^53 are exact)",
            )  # fmt: skip
        return told(value)

    def _names(self, key: str, value: Any, place: str) -> Any:
        good = isinstance(value, list) and all(isinstance(name, str) for name in value)
        self._form(good, key, value, place, "use a list of names")
        return value

    def _one(self, key: str, value: Any, place: str) -> Any:
        self._form(not isinstance(value, list), key, value, place, "use prefixItems")
        return self.schema(value, f"{place}/{key}")

    def _several(self, key: str, value: Any, place: str) -> Any:
        good = isinstance(value, list) and bool(value)
        self._form(good, key, value, place, "use a list of schemas")
        return [self.schema(node, f"{place}/{key}/{k}") for k, node in enumerate(value)]

    def _named(self, key: str, value: Any, place: str) -> Any:
        self._form(isinstance(value, Mapping), key, value, place, "use an object of schemas")
        read = self._pattern if key == "patternProperties" else lambda key, name, place: name
        return {
            read(key, name, place): self.schema(node, f"{place}/{key}/{escaped(name)}")
            for name, node in value.items()
        }

    def _ref(self, key: str, value: Any, place: str) -> Any:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise self.refuse(place, f"$ref {value!r} is not within the schema", "use #/$defs/name")
        return value


def _decimals(bound: int | float) -> int:
    """Digits after the point that a bound needs."""
    denominator = Fraction(str(bound)).denominator
    return next(digits for digits in range(400) if 10**digits % denominator == 0)


def _is_control(piece: str) -> bool:
    """Whether a piece of an expression is a control character that JSON has no short escape for."""
    if piece[:2] in ("\\x", "\\u") and len(piece) > 2:
        piece = chr(int(piece[2:], 16))
    return piece in ("\\0", "\\v") or bool(NEVER_WRITTEN.fullmatch(piece))


RULES: dict[str, Callable[[_Checker, str, Any, str], Any]] = {
    "type": _Checker._type,
    "nullable": _Checker._nullable,
    "enum": _Checker._values,
    "const": _Checker._values,
    "multipleOf": _Checker._multiple,
    "pattern": _Checker._pattern,
    "format": _Checker._format,
    "required": _Checker._names,
    "$ref": _Checker._ref,
    **dict.fromkeys(COMPARED, _Checker._bound),
    **{f"{end}{what}": _Checker._count for what in COUNTED.values() for end in ("min", "max")},
    **dict.fromkeys(("items", "additionalProperties"), _Checker._one),
    **dict.fromkeys(("anyOf", "allOf", "oneOf", "prefixItems"), _Checker._several),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _Checker._named),
}
