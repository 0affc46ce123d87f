"""A tool's schema in the few words that Gemma's chat templates show.

Of a parameter they show the description, one type, the texts that it may be, whether it may be
null, the items of a list, and the properties of an object with those that are required. They drop
the rest without a word. So the rest is
    rewritten   where it can be shown: references, unions of one branch, const, null among types
    said        else, in short words at the end of the description: bounds, patterns, unions, ...
A schema that is shown whole is not changed. The grammar of a call is made from the schema itself.
Source: the Gemma 4 chat templates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

from dgemma.text.calls import DEEPEST

T = TypeVar("T")

logger = logging.getLogger("dgemma")

MOST_EXPANDED = 32768
"""Most characters of schemas that the references of one tool are replaced by."""
LONGEST = 1000
"""Most characters that are added to a description."""
_KINDS = {
    "string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false",
    "null": "null", "array": "a list", "object": "an object",
}  # fmt: skip
_UNIONS = ("anyOf", "oneOf")
_NOTES = ("title", "description", "default", "examples", "deprecated", "discriminator")
"""What two schemas that are joined may both have: the outer one counts."""
_SAID: dict[str, str] = {
    "minimum": "at least {}", "maximum": "at most {}", "exclusiveMinimum": "above {}",
    "exclusiveMaximum": "below {}", "multipleOf": "a multiple of {}", "pattern": "matches {}",
    "format": "format {}", "minLength": "at least {} character(s)",
    "maxLength": "at most {} character(s)", "minItems": "at least {} item(s)",
    "maxItems": "at most {} item(s)", "uniqueItems": "no item twice",
    "minProperties": "at least {} key(s)", "maxProperties": "at most {} key(s)",
    "dependentRequired": "keys that need others: {}", "contentEncoding": "encoded as {}",
}  # fmt: skip
"""Keywords with a plain value that templates do not show."""
_WORDED: dict[str, str] = {
    "not": "not {}", "propertyNames": "keys: {}",
    "additionalProperties": "values of other keys: {}",
    "contains": "one item is {}", "if": "if {}", "then": "then {}", "else": "else {}",
}  # fmt: skip
"""Keywords whose value is a schema."""

_told: set[str] = set()
"""The names of tools of which the log has said that a part is not shown."""


def shown_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Declarations of which a Gemma template shows as much as it can.

    Args:
        tools: as `dgemma.text.messages.clean_tools` returns them; they are not changed.
    """
    return [{**tool, "function": _shown(tool["function"])} for tool in tools]


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    given = function["parameters"]
    if not given:
        return dict(function)
    schema = _Schema(given)
    parameters, notes = schema.rewritten(given)
    description = schema.described(function["description"], notes)
    if schema.lost and function["name"] not in _told:
        if len(_told) < 1000:
            _told.add(function["name"])
        logger.warning(
            "the model is not shown all of the schema of a tool: %s; shorten it", schema.lost
        )
    return {**function, "description": description, "parameters": parameters}


class _Schema:
    """The schema of one tool's parameters.

    Attributes:
        lost: what could neither be shown nor said; "": nothing.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MOST_EXPANDED
        self._open = ["#"]  # references that are being replaced
        self.lost = ""

    def parameter(self, schema: Any, depth: int = 0) -> Any:
        """The schema of a parameter, as it is shown."""
        if not isinstance(schema, Mapping):
            return schema
        shown, notes = self.rewritten(schema, depth)
        description = shown.get("description")
        described = self.described(description if isinstance(description, str) else "", notes)
        return {**shown, "description": described} if notes else shown

    def described(self, description: str, notes: Sequence[str]) -> str:
        """A description with notes at its end."""
        text = "; ".join(notes)
        if len(text) > LONGEST:
            self.lost, text = "a part is too long to be said in a description", ""
        return f"{description} ({text})" if description and text else description or text

    def rewritten(
        self, schema: Mapping[str, Any], depth: int = 0
    ) -> tuple[dict[str, Any], list[str]]:
        """A schema in what is shown, and the rest in words."""
        if depth > DEEPEST:
            self.lost = f"references that go deeper than {DEEPEST} levels"
            return {}, []

        def work(plain: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
            notes = self._notes(plain, depth)
            if isinstance(plain.get("properties"), Mapping):
                own = plain["properties"].items()
                plain["properties"] = {n: self.parameter(one, depth + 1) for n, one in own}
            elif _kind(plain) == "object":
                plain["properties"] = {}  # else a template takes the keywords for properties
            if isinstance(plain.get("items"), Mapping):
                plain["items"] = self._element(plain["items"], depth + 1)
            return plain, notes

        return self._resolved(schema, lambda found: work(_plain(found)))

    def _resolved(self, schema: Mapping[str, Any], work: Callable[[dict[str, Any]], T]) -> T:
        """The result of `work` on the schema, whose reference is replaced meanwhile."""
        found, opened = dict(schema), 0
        while True:
            ref, inner = found.get("$ref"), _only(found)
            if isinstance(ref, str):
                target = self._place(ref)
                del found["$ref"]
                if not isinstance(target, Mapping) or ref in self._open or not self._paid(target):
                    found.setdefault("description", f"as {ref.rsplit('/', 1)[-1]}")
                    kind = target.get("type") if isinstance(target, Mapping) else None
                    found |= {"type": kind} if kind and "type" not in found else {}
                    break
                self._open.append(ref)
                opened += 1
                found = {**target, **found}
            elif inner is not None:
                found = inner
            else:
                break
        result = work(found)
        del self._open[len(self._open) - opened :]
        return result

    def _place(self, ref: str) -> Any:
        """What a reference names; None: nothing."""
        place: Any = self._root if ref.startswith("#") else None
        for part in ref[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and key.isdigit() and int(key) < len(place):
                place = place[int(key)]
            else:
                place = place.get(key) if isinstance(place, Mapping) else None
        if place is None:
            self.lost = "a reference leads nowhere"
        return place

    def _paid(self, target: Mapping[str, Any]) -> bool:
        """Whether there is room for one more schema in place of a reference."""
        if self._left > 0:
            self._left -= len(json.dumps(target))
        if self._left < 0:
            self.lost = "its references stand for too much"
        return self._left >= 0

    def _element(self, schema: Mapping[str, Any], depth: int) -> Any:
        """The items of a list, of which templates write out every keyword but `properties`."""

        def work(found: dict[str, Any]) -> dict[str, Any]:
            return {
                key: {n: self.parameter(one, depth + 1) for n, one in value.items()}
                if key == "properties" and isinstance(value, Mapping)
                else self._whole(value, depth + 1)
                for key, value in found.items()
            }

        if depth > DEEPEST:
            self.lost = f"references that go deeper than {DEEPEST} levels"
            return {}
        return self._resolved(schema, work) if "$ref" in schema else work(dict(schema))

    def _whole(self, value: Any, depth: int) -> Any:
        """A value of a schema with its references replaced."""
        if isinstance(value, list):
            return [self._whole(one, depth) for one in value]
        if not isinstance(value, Mapping) or depth > DEEPEST:
            return value
        if isinstance(value.get("$ref"), str):
            return self._resolved(value, lambda found: self._whole(found, depth + 1))
        return {key: self._whole(one, depth + 1) for key, one in value.items()}

    # -- words ---------------------------------------------------------------------------------

    def _notes(self, plain: Mapping[str, Any], depth: int) -> list[str]:
        """What a template does not show of a schema itself."""
        out = []
        values = plain.get("enum")
        if isinstance(values, list) and (_kind(plain) != "string" or not values):
            out.append(_one_of(values))
        for key in (*_UNIONS, "allOf"):
            branches = plain.get(key)
            if isinstance(branches, list) and branches:
                words = [self._words(one, depth + 1) for one in branches]
                out.append((", and " if key == "allOf" else ", or ").join(words))
        if isinstance(plain.get("prefixItems"), list):
            first = [self._words(one, depth + 1) for one in plain["prefixItems"]]
            out.append(f"its items begin with {', '.join(first)}")
        if isinstance(plain.get("patternProperties"), Mapping):
            out += [
                f"values of keys that match {pattern}: {self._words(one, depth + 1)}"
                for pattern, one in plain["patternProperties"].items()
            ]
        for key, form in _WORDED.items():
            if isinstance(plain.get(key), Mapping):
                out.append(form.format(self._words(plain[key], depth + 1)))
        out += [
            form.format(_value(plain[key])) for key, form in _SAID.items()
            if plain.get(key) is not None and plain[key] is not False
        ]  # fmt: skip
        if plain.get("default") is not None:
            out.append(f"default {json.dumps(plain['default'], ensure_ascii=False)}")
        return out

    def _words(self, schema: Any, depth: int) -> str:
        """A schema in words."""
        if not isinstance(schema, Mapping) or depth > DEEPEST:
            return "nothing" if schema is False else "any value"
        return self._resolved(schema, lambda found: self._said(_plain(found), depth))

    def _said(self, plain: Mapping[str, Any], depth: int) -> str:
        kind, values = _kind(plain), plain.get("enum")
        kinds = kind if isinstance(kind, list) else [kind] if kind else []
        words = " or ".join(_KINDS.get(str(one), str(one)) for one in kinds)
        if isinstance(values, list):
            words = _one_of(values)
        elif kind == "array" and isinstance(plain.get("items"), Mapping):
            words = f"a list; each item {self._words(plain['items'], depth + 1)}"
        elif kind == "object" and isinstance(plain.get("properties"), Mapping):
            own = [f"{n} ({self._words(s, depth + 1)})" for n, s in plain["properties"].items()]
            words = f"an object with {', '.join(own)}"
        more = self._notes({k: v for k, v in plain.items() if k != "enum"}, depth)
        if plain.get("nullable") is True:
            more.append("or null")
        if isinstance(plain.get("description"), str) and not (words or more):
            return str(plain["description"])
        return ", ".join([words, *more] if words else more) or "any value"


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The same with const, and null beside something else, in the form that is shown."""
    out = dict(schema)
    for key in _UNIONS:
        branches = out.get(key)
        texts = [_texts(one) for one in branches] if isinstance(branches, list) else []
        if texts and None not in texts and not {"type", "enum", "const"} & set(out):
            out["enum"] = list(dict.fromkeys(text for some in texts for text in some or ()))
            del out[key]
    if "const" in out and "enum" not in out:
        out["enum"] = [out.pop("const")]
    kinds = out.get("type")
    if isinstance(kinds, list) and "null" in kinds and len(kinds) > 1:
        rest = [kind for kind in kinds if kind != "null"]
        out |= {"type": rest[0] if len(rest) == 1 else rest, "nullable": True}
    values = out.get("enum")
    if isinstance(values, list) and None in values and len(values) > 1:
        out |= {"enum": [value for value in values if value is not None], "nullable": True}
    if "type" not in out:
        kind = _implied(out)
        out |= {"type": kind} if kind else {}
    return out


def _kind(schema: Mapping[str, Any]) -> Any:
    """The type as a schema writes it; some clients write it in capitals, as templates show it."""
    kind = schema.get("type")
    return kind.lower() if isinstance(kind, str) else kind


def _only(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema joined with the only branch of a union, null not counted; None: it has none."""
    for key in (*_UNIONS, "allOf"):
        branches = schema.get(key)
        if not isinstance(branches, list):
            continue
        left = [one for one in branches if key == "allOf" or not _is_null(one)]
        if len(left) != 1 or not isinstance(left[0], Mapping):
            continue
        rest = {name: value for name, value in schema.items() if name != key}
        shared = {name for name in left[0] if name in rest and name not in _NOTES}
        if all(rest[name] == left[0][name] for name in shared):
            null = {"nullable": True} if len(left) < len(branches) else {}
            return {**left[0], **rest, **null}
    return None


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and _kind(schema) == "null"


def _texts(schema: Any) -> list[str] | None:
    """The texts that a schema lists, if it says nothing else."""
    if not isinstance(schema, Mapping) or set(schema) - {"type", "enum", "const", "title"}:
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    return values if schema.get("type", "string") == "string" else None


def _implied(schema: Mapping[str, Any]) -> str:
    """The type that a schema means without naming it; "": none for certain."""
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return "string" if all(isinstance(value, str) for value in values) else ""
    if isinstance(schema.get("properties"), Mapping):
        return "object"
    return "array" if isinstance(schema.get("items"), Mapping) else ""


def _one_of(values: Sequence[Any]) -> str:
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
