"""The grammar of tool calls in Gemma's own form, in Lark's syntax.

`call:NAME{key:value,...}` between call markers, keys sorted as the chat template sorts them,
strings between quote tokens without escapes, exactly as `calls` writes and reads it. Arguments
follow the tool's schema. Knows nothing about ids.

An object without names, or with patterns for its keys, has keys of its own choice, after the named
ones. All others have named keys alone, as the model has learnt them, though JSON Schema would
allow more; and a value of which nothing is said is not an object with keys.
Source: the Gemma 4 chat template; the Lark dialect of llguidance 1.9.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from dgemma.constrain.guidance import has_text
from dgemma.constrain.json_schema import accepted_schema
from dgemma.constrain.limits import TOOL_RULES
from dgemma.constrain.regex import terminal, whole
from dgemma.constrain.schema_proofs import (
    COMPARED,
    Conjunction,
    SchemaReader,
    bounds,
    item,
    kinds,
    limits,
    lists,
    member,
    patterns,
    prefix_length,
    required,
)
from dgemma.constrain.tool_choice import function_of
from dgemma.errors import InvalidRequest, nearest
from dgemma.request_parts import ToolUse
from dgemma.text.calls import QUOTE, format_call
from dgemma.types import ToolCall

_AGAIN = r'<(<|\|<|\|"<|\|"\|<)*'
TEXT = rf'/([^<]|{_AGAIN}([^<|]|\|[^<"]|\|"[^<|]|\|"\|[^<>]))*({_AGAIN}(\||\|"|\|"\|)?)?/'
"""Whatever does not spell out the quote token, which a string could not be written back with.

Written as the automaton that looks for it, since a negation costs the library far more.
"""

NUMBER = r"/-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/"
"""A number that is finite and reads the same everywhere."""
BARE = r"""/[^\s\x1c-\x1f{}\[\],:<>|"]+/"""
"""A key that is not quoted."""
IMPLIED = (
    ("object", {"properties", "required", "additionalProperties", "patternProperties"}),
    ("array", {"items", "prefixItems", "minItems", "maxItems"}),
    ("string", {"minLength", "maxLength", "pattern", "format"}),
    ("number", {*COMPARED, "multipleOf"}),
)
"""The type that keywords are meant for where none is given."""
SIMPLE = ("string", "number", "boolean", "null", "array")
"""The types of a value of which nothing is said."""
OBJECT = {"type": "object"}
ARGUMENTS = {"type": "object", "properties": {}}
COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
ANYWHERE = r"""start: PLAIN? ((<|channel> | <channel|> | call) PLAIN?)*
loose: (PLAIN | <|"|>)*
PLAIN: /(.|\n)+/"""
"""Calls between any texts; `loose` are the arguments of a tool that is not strict."""


def calls_lark(calls: ToolUse) -> str:
    """A grammar of one call, or of any text whose calls are of these tools.

    Raises:
        InvalidRequest: no tool (of that name), or a schema that cannot be kept to.
    """
    functions = [_function(tool) for tool in calls.tools]
    names = [one["name"] for one in functions]
    if calls.name is not None and calls.name not in names:
        hint = nearest(calls.name, names)
        raise InvalidRequest(f"tool_choice: no tool is {calls.name!r}{hint}", field="tool_choice")
    if not functions:
        raise InvalidRequest("tool_choice: there are no tools; pass some", field="tool_choice")
    writer = _Writer()
    written = [
        writer.call(one) if calls.required or one.get("strict") else f"{_head(one, '{')} loose"
        for one in functions if calls.name in (None, one["name"])
    ]  # fmt: skip
    start = "start: call" if calls.required else ANYWHERE
    call = f"call: <|tool_call> ({' | '.join(written)}) <tool_call|>"
    return "\n".join([start, call, *writer.lines()])


def _head(function: Mapping[str, Any], brace: str = "") -> str:
    return _literal(format_call(ToolCall(name=function["name"], arguments={}))[:-2] + brace)


def _function(tool: Any) -> Mapping[str, Any]:
    function = function_of(tool)
    if not isinstance(function.get("name"), str):
        raise InvalidRequest(f"tools: {tool!r} is not a tool; give it a function with a name")
    return function


def _literal(text: str) -> str:
    """A text of this form in a grammar; quote tokens in it become the token."""
    pieces = [json.dumps(piece) if piece else "" for piece in text.split(QUOTE)]
    return f" {QUOTE} ".join(pieces).strip() or '""'


class _Writer:
    """Writes calls and the values of their schemas as rules; equal rules are written once."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}  # body -> name
        self._names: dict[frozenset[int], str] = {}  # of the rules of conjunctions
        self._recursive: set[frozenset[int]] = set()
        self._steps = 0
        self._readers: list[SchemaReader] = []  # kept, so that no id of a schema is used again

    def lines(self) -> list[str]:
        """The rules."""
        return [f"{name}: {body}" for body, name in self._rules.items()]

    def call(self, function: Mapping[str, Any]) -> str:
        """The part of a call of a tool between the markers."""
        where = f"tool {function['name']!r} parameters"
        parameters = accepted_schema(function.get("parameters") or {}, where)
        self._reader = SchemaReader(parameters, self._has_scalar)
        self._readers.append(self._reader)
        schemas = (ARGUMENTS, parameters)
        if not self._reader.possible(schemas):
            raise InvalidRequest(f"{where} #: arguments are an object; give it type object")
        return f"{_head(function)} {self._value(schemas)}"

    def _rule(self, body: str, kind: str = "r") -> str:
        """The name of a rule with this body; `kind` "T": of a terminal."""
        self._step()
        return self._rules.setdefault(body, f"{kind}{len(self._rules)}")

    def _step(self) -> None:
        self._steps += 1
        TOOL_RULES.check(self._steps, "tools")

    def _value(self, schemas: Conjunction) -> str:
        """The rule of the values that satisfy all these schemas, of which there are some."""
        key = frozenset(map(id, schemas))
        if key in self._names:
            self._recursive.add(key)  # if it is not finished yet
            return self._names[key]
        name = self._names[key] = f"v{len(self._names)}"
        texts = [text for flat in self._reader.alternatives(schemas) for text in self._texts(flat)]
        body = " | ".join(dict.fromkeys(texts))
        if key not in self._recursive:
            self._names[key] = self._rule(body)
        else:
            while body in self._rules:
                body = f"({body})"
            self._rules[body] = name
        return self._names[key]

    def _texts(self, flat: Conjunction) -> list[str]:
        """Every form of the values of a flat conjunction."""
        if lists(flat):
            return [
                _literal(_written({"k": value})[len("{k:") : -1])
                for value in self._reader.listed(flat)
            ]
        words = set().union(*flat)
        groups: list[Sequence[str]] = [[kind] for kind, own in IMPLIED if own & words]
        if "type" in words:
            left = kinds(flat)
            groups = [sorted(left - {"integer"} if "fraction" in left else left)]
        for group in [*groups, *[SIMPLE] * ("type" not in words)]:
            if found := [text for kind in group for text in self._typed(kind, flat)]:
                return found
        return []

    def _typed(self, kind: str, flat: Conjunction) -> list[str]:
        if kind == "array":
            return self._array(flat)
        if kind == "object":
            return self._object(flat)
        if not self._has_scalar(kind, flat):
            return []
        if kind == "string":
            return [f"{QUOTE} {self._rule(_string(flat), 'T')} {QUOTE}"]
        if kind in ("null", "boolean"):
            return ['"null"'] if kind == "null" else ['"true"', '"false"']
        number = _number(flat)
        return [self._rule(number, "T" if number == NUMBER else "r")]

    def _has_scalar(self, kind: str, flat: Conjunction) -> bool:
        """See `SchemaReader`: asks the library whether something is left."""
        if kind == "string":
            return _string(flat) == TEXT or has_text(f"start: T\nT: {_string(flat)}")
        lowest, highest = bounds(flat)
        some = highest - lowest > 1 and not any("multipleOf" in node for node in flat)
        if kind in ("null", "boolean") or some:
            return True
        return has_text(f"start: {_number(flat)}")

    def _array(self, flat: Conjunction) -> list[str]:
        least, most = limits(flat, "array")
        own = max(prefix_length(flat), 1)  # so many are written one by one, the rest are alike
        schemas = [item(flat, k) for k in range(own + 1)]
        possible = [self._reader.possible(one) for one in schemas]
        most = min([most, *(k for k, good in enumerate(possible) if not good)])
        if least > most:
            return []
        rest = (
            _times(f'("," {self._any(schemas[own])})', least - own, most - own)
            if most > own
            else ""
        )
        for k in reversed(range(1, int(min(own, most)))):
            rest = f'"," {self._any(schemas[k])} {rest}'
            rest = f"({rest})?" if k >= least else rest
        full = [f'"[" {self._any(schemas[0])} {rest} "]"'] if most else []
        return full if least else ['"[]"', *full]

    def _any(self, schemas: Conjunction, extra: str = '"{}"') -> str:
        """As `_value`; where nothing is said of it, also an object."""
        value = self._value(schemas)
        return value if any(one is not True and one for one in schemas) else f"({value} | {extra})"

    def _object(self, flat: Conjunction) -> list[str]:
        needed = required(flat)
        names = [name for node in flat for key in ("properties", "required")
                 for name in node.get(key, ())]  # fmt: skip
        pairs: list[tuple[str, bool]] = []
        for name in sorted(dict.fromkeys(names), key=str.lower):
            schemas = member(flat, name)
            if self._reader.possible(schemas):
                key = _literal(_written({name: None})[1 : -len("null}")])
                pairs.append((f"{key} {self._value(schemas)}", name in needed))
            elif name in needed:
                return []
        least, most = limits(flat, "object")
        least, most = max(least - len(needed), 0), most - len(needed)
        counted = len(pairs) > len(needed)  # the bounds are on pairs that may be left out
        own = self._own_keys(flat, names, bool(least) and not counted)
        if most < 0 or (least and not counted and not own):
            return []
        cap = 0 if not counted else least if most == math.inf else int(most)
        first = next((at for at, (_, need) in enumerate(pairs) if need), len(pairs))
        after = {
            (started, taken): _repeated(
                own, started, *((0, math.inf) if counted else (least, most))
            )
            for started, taken in product((False, True), range(cap + 1))
            if taken >= least * counted
        }  # what follows when some pairs are written, and how many of those that may be left out
        for at, (pair, need) in reversed([*enumerate(pairs)]):
            later, after = after, {}
            for started, taken in product((False, True), range(cap + 1)):
                texts = []
                now = (True, taken if need else min(taken + 1, cap))
                if now in later and (need or taken < most):
                    comma = '"," ' if started else ""
                    texts.append(f"{comma}{pair} {later[now]}".strip())
                if (started, taken) in later and not need:
                    texts.append(later[started, taken] or '""')
                if texts and (started or at <= first):
                    after[started, taken] = self._rule(" | ".join(texts))
        return [f'"{{" {after[False, 0]} "}}"'] if (False, 0) in after else []

    def _own_keys(self, flat: Conjunction, names: Sequence[str], wanted: bool) -> str:
        """A pair with a key that the schema does not name; "" where a call has none."""
        loose = any(isinstance(node.get("additionalProperties"), Mapping) for node in flat)
        loose |= not any("properties" in node for node in flat)
        patterned = any("patternProperties" in node for node in flat)
        if not (wanted or patterned or (loose and not names)):
            return ""
        classes: list[list[tuple[str, Any]]] = []
        for node in flat:
            own = [(terminal(whole(pattern)), schema)
                   for pattern, schema in node.get("patternProperties", {}).items()]  # fmt: skip
            others = " & ".join(f"~{key}" for key, _ in own)
            classes.append([*own, (others, node.get("additionalProperties", True))])
        named = " & ".join(f"~{json.dumps(name)}" for name in names)
        texts = []
        for keys, schemas in (zip(*chosen, strict=True) for chosen in product(*classes)):
            self._step()
            if not self._reader.possible(schemas):
                continue
            for form, mark in ((BARE, ""), (f"{TEXT} & ~{BARE}", QUOTE)):
                key = " & ".join(filter(None, (form, *keys, named)))
                if has_text(f"start: T\nT: {key}"):
                    value = self._any(schemas, self._value((OBJECT,)))
                    texts.append(f'{mark} {self._rule(key, "T")} {mark} ":" {value}')
        return self._rule(" | ".join(texts)) if texts else ""


def _repeated(pair: str, started: bool, least: int, most: float) -> str:
    """Pairs to the end of an object."""
    if not pair or most <= 0:
        return ""
    if started:
        return _times(f'("," {pair})', least, most)
    more = _times(f'("," {pair})', least - 1, most - 1)
    text = f"{pair} {more}".strip()
    return text if least else f"({text})?"


def _times(group: str, least: int, most: float) -> str:
    """A repeated group, with no end if `most` is infinite."""
    return f"{group}{{{max(least, 0)},{'' if most == math.inf else int(most)}}}" if most else ""


def _written(arguments: Mapping[str, Any]) -> str:
    """Arguments in the form of a call, braces included."""
    return format_call(ToolCall(name="x", arguments=arguments))[len("call:x") :]


def _number(flat: Conjunction) -> str:
    """The body of a rule for numbers: a terminal, or JSON where something is said of them."""
    kind = "number" if "fraction" in kinds(flat) else "integer"
    keys = (*COMPARED, "multipleOf")
    parts = [part for node in flat if (part := {key: node[key] for key in keys if key in node})]
    if kind == "number" and not parts:
        return NUMBER
    schema = {"type": kind, **({"allOf": parts} if len(parts) > 1 else (parts or [{}])[0])}
    return "%json " + json.dumps({**schema, "x-guidance": COMPACT})


def _string(flat: Conjunction) -> str:
    """A terminal for strings."""
    least, most = limits(flat, "string")
    length = [f"/(?s:{_times('.', least, most)})/"] * (least > 0 or most < math.inf)
    return " & ".join([TEXT, *length, *map(terminal, patterns(flat))])
