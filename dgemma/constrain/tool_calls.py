"""The language of one tool call in Gemma's own form, as a grammar in Lark's syntax.

`call:NAME{key:value,...}` between call markers, keys sorted as the chat template sorts them,
strings between quote tokens without escapes, exactly as `calls` writes and reads it. Arguments
follow the tool's schema; what cannot be kept to is refused by name. Knows nothing about ids.
Source: the Gemma 4 chat template; the Lark dialect of llguidance 1.9.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dgemma.constrain.json_schema import checked_schema
from dgemma.constrain.regex import portable, whole
from dgemma.constrain.schema_proofs import disjoint, productive, resolve
from dgemma.errors import InvalidRequest, nearest
from dgemma.text.calls import QUOTE, format_call
from dgemma.types import ToolCall

_AGAIN = r'<(<|\|<|\|"<|\|"\|<)*'
TEXT = rf'/([^<]|{_AGAIN}([^<|]|\|[^<"]|\|"[^<|]|\|"\|[^<>]))*({_AGAIN}(\||\|"|\|"\|)?)?/'
"""Whatever does not spell out the quote token, which a string could not be written back with.

Written as the automaton that looks for it, since a negation costs the library far more.
"""

NUMBER = r"/-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/"
"""A number that is finite and reads the same everywhere."""

_DAY = (
    "(([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8])))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[048]|[2468][048]"
    "|[13579][26])00)-02-29)"
)
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[0-9A-Za-z_+-]+(\.[0-9A-Za-z_+-]+)*@[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)+",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
}
_NOTES = {
    "$comment", "title", "description", "default", "examples", "example", "deprecated", "$schema",
    "$defs", "definitions", "strict", "readOnly", "writeOnly",
}  # fmt: skip
_STRING = {"minLength", "maxLength", "pattern", "format"}
_NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_LIST = {"items", "minItems", "maxItems"}
_OBJECT = {"properties", "required", "additionalProperties"}
_CHOICE = {"type", "enum", "const", "anyOf", "oneOf", "$ref", "nullable"}
_KNOWN = _STRING | _NUMBER | _LIST | _OBJECT | _CHOICE


ANYWHERE = r"""start: PLAIN? ((<|channel> | <channel|> | call) PLAIN?)*
loose: (PLAIN | <|"|>)*
PLAIN: /(.|\n)+/"""
"""Calls between any texts; `loose` are the arguments of a tool that is not strict."""


def strict_lark(tools: Sequence[Mapping[str, Any]]) -> str:
    """A grammar of any texts, in which calls are of these tools; of strict ones by their schema.

    Raises:
        InvalidRequest: a strict tool whose schema cannot be kept to.
    """
    rules = _Rules()
    calls = [
        _call(one, rules) if one.get("strict") else f"{_head(one, '{')} loose"
        for one in map(_function, tools)
    ]
    call = f"call: <|tool_call> ({' | '.join(calls)}) <tool_call|>"
    return "\n".join([ANYWHERE, call, *rules.lines])


def call_lark(tools: Sequence[Mapping[str, Any]], name: str | None) -> str:
    """A grammar whose texts are calls of one of these tools.

    Args:
        tools: in OpenAI's form, with or without the outer `function`.
        name: of the only tool that may be called; None: any.

    Raises:
        InvalidRequest: no tool (of that name), or a schema that cannot be kept to.
    """
    functions = [_function(tool) for tool in tools]
    if name is not None and name not in (names := [one["name"] for one in functions]):
        hint = nearest(name, names)
        raise InvalidRequest(f"tool_choice: no tool is {name!r}{hint}", field="tool_choice")
    if not functions:
        raise InvalidRequest("tool_choice: there are no tools; pass some", field="tool_choice")
    rules = _Rules()
    calls = [_call(one, rules) for one in functions if name in (None, one["name"])]
    return "\n".join([f"start: <|tool_call> ({' | '.join(calls)}) <tool_call|>", *rules.lines])


def _call(function: Mapping[str, Any], rules: _Rules) -> str:
    """What stands for a call of a tool, between the markers."""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    arguments = rules.arguments(parameters, f"tool {function['name']!r}")
    return f"{_head(function)} {arguments}"


def _head(function: Mapping[str, Any], brace: str = "") -> str:
    return _literal(format_call(ToolCall(name=function["name"], arguments={}))[:-2] + brace)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"tools: {tool!r} is no tool; give it a function with a name")
    return function


def _literal(text: str) -> str:
    """A text of this form in a grammar; quote tokens in it become the token."""
    pieces = [json.dumps(piece) if piece else "" for piece in text.split(QUOTE)]
    return f" {QUOTE} ".join(pieces).strip() or '""'


class _Rules:
    """Grows a grammar rule by rule."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[tuple[int, str], str] = {}  # of referenced schemas
        self._root: Mapping[str, Any] = {}
        self._made: dict[str, str] = {}  # bodies that have a rule

    def arguments(self, parameters: object, where: str) -> str:
        """What stands for a tool's arguments: the braces and all between them."""
        if not isinstance(parameters, Mapping):
            raise InvalidRequest(f"{where}: parameters must be an object; got {parameters!r}")
        self._root = parameters
        if not productive(parameters, parameters):
            raise InvalidRequest(f"{where}: no finite arguments satisfy the schema; correct it")
        self._check(parameters, where)
        if beside := sorted((_CHOICE - {"type"}) & set(parameters)):
            raise InvalidRequest(
                f"{where}: {beside[0]} beside the properties is not supported in a tool's schema; "
                "write it into a property"
            )
        node = dict(parameters)
        node.setdefault("type", "object")
        node.setdefault("properties", {})
        if node["type"] != "object":
            raise InvalidRequest(f"{where}: parameters must have type object")
        return self._rule(self._object(node, where))

    def _rule(self, body: str, *, terminal: bool = False) -> str:
        """The name of a rule with this body."""
        key = ("T" if terminal else "r") + body
        if key not in self._made:
            self._made[key] = f"{'T' if terminal else 'r'}{len(self._made)}"
            self.lines.append(f"{self._made[key]}: {body}")
        return self._made[key]

    def _check(self, node: Mapping[str, Any], where: str) -> None:
        for key in node:
            if key not in _KNOWN and key not in _NOTES and not key.startswith("x-"):
                raise InvalidRequest(
                    f"{where}: keyword {key!r} is not supported in a tool's schema"
                    f"{nearest(key, _KNOWN)}; leave it out or choose tool_choice 'auto'"
                )
        for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
            for key in (low, high):
                value = node.get(key, 0)
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise InvalidRequest(f"{where}: {key} is {value!r}; use a whole number")
            if node.get(low, 0) > node.get(high, math.inf):
                raise InvalidRequest(f"{where}: {low} is above {high}; nothing satisfies that")

    def value(self, node: Any, where: str) -> str:
        """What stands for a value of a schema."""
        if node is True:
            node = {}
        if not isinstance(node, Mapping):
            raise InvalidRequest(f"{where}: {node!r} is no usable schema; use an object")
        self._check(node, where)
        if not productive(node, self._root):
            raise InvalidRequest(f"{where}: no finite value satisfies the schema; correct it")
        ways = self._ways(node, where)
        if node.get("nullable") is True:
            ways.append('"null"')
        return self._rule(" | ".join(dict.fromkeys(ways)))

    def _ways(self, node: Mapping[str, Any], where: str) -> list[str]:
        leading = [key for key in ("$ref", "const", "enum", "anyOf", "oneOf") if key in node]
        beside = set(node) & _KNOWN - {"nullable", "type", *leading[:1]}
        if leading and beside:
            raise InvalidRequest(
                f"{where}: {leading[0]} beside {sorted(beside)[0]} is not supported in a tool's "
                "schema; merge them"
            )
        if "$ref" in node:
            return [self._reference(node["$ref"], where)]
        if "const" in node or "enum" in node:
            return self._listed(node, where)
        for key in ("anyOf", "oneOf"):
            if key in node:
                if "type" in node:
                    raise InvalidRequest(f"{where}: {key} beside type; move type into the branches")
                return self._branches(key, node[key], where)
        kinds = node.get("type")
        if kinds is None:
            kinds = _implied(node)
        names = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(names, list) or not names:
            raise InvalidRequest(f"{where}: type is {kinds!r}; name one or more types")
        return [self._typed(str(kind), node, where) for kind in names]

    def _reference(self, target: Any, where: str) -> str:
        if not isinstance(target, str) or not target.startswith("#/"):
            raise InvalidRequest(f"{where}: $ref {target!r}; use #/$defs/name")
        key = (id(self._root), target)
        if key not in self._names:
            name = self._names[key] = f"ref{len(self._names)}"
            body = self.value(resolve(target, self._root), f"{where} {target}")
            self.lines.append(f"{name}: {body}")
        return self._names[key]

    def _listed(self, node: Mapping[str, Any], where: str) -> list[str]:
        values = [node["const"]] if "const" in node else node["enum"]
        if not isinstance(values, list) or not values:
            raise InvalidRequest(f"{where}: enum is {values!r}; list at least one value")
        kinds = node.get("type", list(_FITS))
        names = [kinds] if isinstance(kinds, str) else kinds
        fitting = [v for v in values if any(_FITS.get(kind, _never)(v) for kind in names)]
        if not fitting:
            raise InvalidRequest(f"{where}: no value of enum has type {kinds!r}; correct one")
        head = len("call:x{k:")
        return [
            _literal(format_call(ToolCall(name="x", arguments={"k": v}))[head:-1]) for v in fitting
        ]

    def _branches(self, key: str, branches: Any, where: str) -> list[str]:
        if not isinstance(branches, list) or not branches:
            raise InvalidRequest(f"{where}: {key} is {branches!r}; list at least one schema")
        if key == "oneOf":
            for k, one in enumerate(branches):
                if not all(disjoint(one, other, self._root) for other in branches[k + 1 :]):
                    raise InvalidRequest(
                        f"{where}: two branches of oneOf may hold at once; use anyOf"
                    )
        return [self.value(branch, f"{where}.{key}[{k}]") for k, branch in enumerate(branches)]

    def _typed(self, kind: str, node: Mapping[str, Any], where: str) -> str:
        if kind == "string":
            return self._string(node, where)
        if kind in ("integer", "number"):
            return self._number(kind, node, where)
        if kind == "boolean":
            return '"true" | "false"'
        if kind == "null":
            return '"null"'
        if kind == "array":
            return self._list(node, where)
        if kind == "object":
            return self._object(node, where)
        known = ("string", "integer", "number", "boolean", "null", "array", "object")
        raise InvalidRequest(f"{where}: {kind!r} is no type{nearest(kind, known)}; correct it")

    def _string(self, node: Mapping[str, Any], where: str) -> str:
        parts = [TEXT]
        if "minLength" in node or "maxLength" in node:
            parts.append(f"/(?s:.{{{node.get('minLength', 0)},{node.get('maxLength', '')}}})/")
        if "pattern" in node:
            if not isinstance(node["pattern"], str):
                raise InvalidRequest(f"{where}: pattern is {node['pattern']!r}; use a text")
            pattern = whole(portable(node["pattern"], f"{where}: pattern"))
            parts.append(f"/({_slashes(pattern)})/")
        if "format" in node:
            if node["format"] not in FORMATS:
                raise InvalidRequest(
                    f"{where}: format {node['format']!r} is not enforced; use a pattern, or one "
                    f"of {', '.join(FORMATS)}"
                )
            parts.append(f"/{FORMATS[node['format']]}/")
        return f"{QUOTE} {self._rule(' & '.join(parts), terminal=True)} {QUOTE}"

    def _number(self, kind: str, node: Mapping[str, Any], where: str) -> str:
        from_schema = {key: node[key] for key in _NUMBER & set(node)}
        if kind == "number" and not from_schema:
            return self._rule(NUMBER, terminal=True)
        try:
            schema = checked_schema({"type": kind, **from_schema})
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error}") from None
        return self._rule("%json " + json.dumps(schema | {"x-guidance": _COMPACT}))

    def _list(self, node: Mapping[str, Any], where: str) -> str:
        least, most = node.get("minItems", 0), node.get("maxItems", math.inf)
        if most == 0:
            return '"[]"'
        items = node.get("items", {})
        item = self._anything() if items in ({}, True) else self.value(items, f"{where}[]")
        up_to = "" if most == math.inf else int(most) - 1
        full = f'"[" {item} ("," {item}){{{max(least - 1, 0)},{up_to}}} "]"'
        return full if least else f'"[]" | {full}'

    def _anything(self) -> str:
        """Any value but an object with keys: nothing could keep its keys apart and in order."""
        name = "anything"
        if "anything" not in self._made:
            self._made["anything"] = name
            text = self._string({}, "")
            number = self._rule(NUMBER, terminal=True)
            words = '"true" | "false" | "null" | "{}"'
            self.lines.append(
                f'{name}: {text} | {number} | {words} | "[]" | "[" {name} ("," {name})* "]"'
            )
        return name

    def _object(self, node: Mapping[str, Any], where: str) -> str:
        named = node.get("properties")
        required = node.get("required", [])
        if not isinstance(named, Mapping):
            raise InvalidRequest(
                f"{where}: an object without properties; name them, or use a list of pairs"
            )
        if isinstance(node.get("additionalProperties"), Mapping) and not named:
            raise InvalidRequest(f"{where}: additionalProperties with a schema; name the keys")
        if not isinstance(required, list) or not set(map(str, required)) <= set(named):
            missing = sorted(set(map(str, required)) - set(named)) if required else []
            raise InvalidRequest(f"{where}: required {missing} not in properties; add them")
        pairs = []
        for key in sorted(named, key=lambda key: str(key).lower()):
            if named[key] is False and key not in required:
                continue
            written = format_call(ToolCall(name="x", arguments={key: None}))[
                len("call:x{") : -len("null}")
            ]
            value = self.value(named[key], f"{where}.{key}")
            pairs.append((f"{_literal(written)} {value}", key in required))
        later = ""  # what may follow once a pair stands there
        first = ""  # what may stand there while none does
        empty = True
        for pair, needed in reversed(pairs):
            ways = [f"{pair} {later}".strip()]
            if not needed and first:
                ways.append(first)
            empty = empty and not needed
            first = self._rule(" | ".join(ways))
            following = f'"," {pair} {later}'.strip()
            if needed:
                later = self._rule(following)
            else:
                later = self._rule(f"{following} | {later}" if later else f'{following} | ""')
        if not first:
            return '"{}"'
        return f'"{{" {first} "}}"' + (' | "{}"' if empty else "")


def _slashes(pattern: str) -> str:
    """The pattern as it stands between two slashes."""
    out, at = [], 0
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(piece)
        out.append({"/": "\\/", "\n": "\\n"}.get(piece, piece))
    return "".join(out)


def _implied(node: Mapping[str, Any]) -> list[str]:
    """The types that a schema without a type is meant for."""
    for kind, words in (("object", _OBJECT), ("array", _LIST), ("string", _STRING)):
        if words & set(node):
            return [kind]
    return ["number"] if _NUMBER & set(node) else ["string", "number", "boolean", "null", "array"]


def _never(value: object) -> bool:
    return False


def _is_whole(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value == int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FITS: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": _is_whole,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, Mapping),
}
_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
