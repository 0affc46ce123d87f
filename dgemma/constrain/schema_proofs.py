"""What follows from JSON schemas that hold at once: alternatives, members, values, contradictions.

A conjunction is a tuple of schemas, a flat one has no references and branches left to follow.
Proofs err on the safe side: "not disjoint" means not proved so. Knows nothing about grammars;
schemas come in checked.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from dgemma.constrain.guidance import has_text
from dgemma.constrain.regex import terminal, whole
from dgemma.constrain.schema_numbers import form
from dgemma.errors import InvalidRequest

Conjunction = tuple[Any, ...]
EFFORT = 200_000
"""Schemas that may be looked at, or copied into branches, while one schema is read."""
MATCH = 10
"""Schemas that could be looked at in the time in which an expression is matched."""
REFERRING = frozenset(("$ref", "allOf", "anyOf"))
"""Keywords that say nothing themselves."""
COMPARED = {
    "minimum": operator.ge, "exclusiveMinimum": operator.gt,
    "maximum": operator.le, "exclusiveMaximum": operator.lt,
}  # fmt: skip
NUMBERS = frozenset(("integer", "fraction"))
EVERY = NUMBERS | {"null", "boolean", "string", "array", "object"}
KINDS = ((type(None), "null"), (bool, "boolean"), (int, "integer"), (str, "string"),
         (list, "array"), (dict, "object"))  # fmt: skip
COUNTED = {"string": "Length", "array": "Items", "object": "Properties"}
"""What minLength, maxItems and their like count."""


def resolve(target: str, root: Any) -> Any:
    """The part of a schema that a pointer such as `#/$defs/x` names; percent-encoded."""
    found = root
    for part in target.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        found = found[int(key) if isinstance(found, list) else key]
    return found


def within_bounds(kind: str, flat: Conjunction) -> bool:
    """Whether the bounds of numbers leave room; true for all other kinds."""
    lowest, highest = bounds(flat)
    return kind not in NUMBERS or lowest <= highest


class SchemaReader:
    """Reads one schema and all that it refers to."""

    def __init__(self, root: Any, scalar: Callable[[str, Conjunction], bool] | None) -> None:
        """
        Args:
            root: the schema that references lead into.
            scalar: whether a flat conjunction that allows a kind of scalar has a value of it;
                None: no contradiction is looked for.
        """
        self._root = root
        self._scalar = scalar
        self._left = EFFORT
        self._forms: dict[int, dict[str, Any]] = {}
        self._listed: dict[frozenset[int], list[Any]] = {}
        self._possible: set[frozenset[int]] = set()
        self._impossible: set[frozenset[int]] = set()
        self._open: set[frozenset[int]] = set()
        self._assumed = False
        self._plain: set[int] = set()  # schemas that are no part of themselves

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise InvalidRequest("too many combinations of branches and references; merge some")

    def _parts(self, node: Any) -> list[Any]:
        """The schemas that a value of a schema satisfies as well, or of which it satisfies one."""
        if isinstance(node, bool):
            return []
        target = [resolve(node["$ref"], self._root)] if "$ref" in node else []
        return [*target, *node.get("allOf", ()), *node.get("anyOf", ())]

    def _cyclic(self, schemas: Conjunction) -> bool:
        """Whether a schema is a part of itself; looks at each once."""
        todo = [(schema, False) for schema in schemas]
        above = set[int]()
        while todo:
            node, done = todo.pop()
            if done:
                above.remove(id(node))
                self._plain.add(id(node))
            elif id(node) in above:
                return True
            elif id(node) not in self._plain:
                self._spend(1)
                above.add(id(node))
                todo += [(node, True), *((part, False) for part in self._parts(node))]
        return False

    def alternatives(self, schemas: Conjunction) -> Iterator[Conjunction]:
        """The flat conjunctions of which one holds where all these schemas hold.

        Raises:
            InvalidRequest: too many.
        """
        Pending = list[tuple[Any, frozenset[int]]]  # schemas, and those that they are a part of
        start: Pending = [(schema, frozenset()) for schema in reversed(schemas)]
        todo: list[tuple[Pending, dict[int, Any], set[int]]] = [(start, {}, set())]
        seen, cyclic = set[Any](), self._cyclic(schemas)
        while todo:
            pending, flat, met = todo.pop()
            state = tuple((id(node), path) for node, path in pending), frozenset(flat)
            if state in seen:
                continue  # two ways lead to the same conjunction
            seen.add(state)
            while pending:
                self._spend(1)
                node, path = pending.pop()
                if node is False or id(node) in path:
                    break  # a schema that is one of its own parts adds no value
                if node is True or id(node) in met:
                    continue
                met.add(id(node))
                if not REFERRING.issuperset(node):
                    flat[id(node)] = node
                if cyclic:
                    path |= {id(node)}
                if "$ref" in node:
                    pending.append((resolve(node["$ref"], self._root), path))
                pending += [(part, path) for part in node.get("allOf", ())]
                if branches := node.get("anyOf"):
                    if not (pending or flat):
                        met = set()  # nothing else holds that could be met again
                    self._spend(len(branches) * (len(pending) + len(met)))
                    todo += [([*pending, (branch, path)], dict(flat), set(met))
                             for branch in branches[::-1]]  # fmt: skip
                    break
            else:
                yield tuple(flat.values())

    def possible(self, schemas: Conjunction) -> bool:
        """Whether some finite value may satisfy all; False only where that is proved wrong."""
        while True:
            known, self._open, self._assumed = len(self._possible), set(), False
            if self._satisfiable(schemas):
                return True
            if not self._assumed or len(self._possible) == known:  # another round shows no more
                self._impossible |= {key for key in self._open - self._possible if len(key) == 1}
                return False

    def _satisfiable(self, schemas: Conjunction) -> bool:
        """One round: a conjunction that was asked for already counts as impossible for now."""
        key = frozenset(id(schema) for schema in schemas if schema is not True)
        if key in self._possible or key in self._impossible:
            return key in self._possible
        self._assumed |= key in self._open
        if key not in self._open:
            self._open.add(key)
            if len(schemas) == 1 and _only_branches(schemas[0]):  # each is known by itself
                fits = any(self._satisfiable((part,)) for part in self._parts(schemas[0]))
            else:
                fits = any(map(self._fits, self.alternatives(schemas)))
            if fits:
                self._possible.add(key)
        return key in self._possible

    def _fits(self, flat: Conjunction) -> bool:
        left, scalar = kinds(flat), self._scalar
        if lists(flat):
            return scalar is None or bool(self.listed(flat))
        if scalar is None and not left:
            return all(self._fits((node,)) for node in flat)
        if any(scalar is None or scalar(kind, flat) for kind in left - {"array", "object"}):
            return True
        least, most = limits(flat, "array")
        items = [item(flat, k) for k in range(min(least, prefix_length(flat) + 1))]
        if "array" in left and least <= most and all(map(self._satisfiable, items)):
            return True
        members = [member(flat, name) for name in required(flat)]
        few = len(members) <= limits(flat, "object")[1]
        return "object" in left and few and all(map(self._satisfiable, members))

    def listed(self, flat: Conjunction) -> list[Any]:
        """The values of a flat conjunction that lists them."""
        key = frozenset(map(id, flat))
        if key not in self._listed:
            first, *others = (self._values(node) for node in flat if lists((node,)))
            self._spend(len(first) * (1 + len(others)))
            self._listed[key] = [
                value for known, value in first.items()
                if all(known in other for other in others) and self.allowed(value, flat)
            ]  # fmt: skip
        return self._listed[key]

    def allowed(self, value: Any, flat: Conjunction) -> bool:
        """Whether a value satisfies a flat conjunction."""
        kind = _kind(value)
        if kind not in kinds(flat):
            return False
        if not all(form(value) in self._values(node) for node in flat if lists((node,))):
            return False
        if kind in COUNTED:
            least, most = limits(flat, kind)
            if not least <= len(value) <= most:
                return False
        if kind == "string":
            expressions = patterns(flat)
            self._spend(MATCH * len(expressions))
            return _matches(value, expressions)
        self._spend(1)
        if kind == "array":
            return all(self._allows(part, item(flat, k)) for k, part in enumerate(value))
        if kind == "object":
            members = [self._allows(part, member(flat, name)) for name, part in value.items()]
            return required(flat) <= set(value) and all(members)
        if kind in NUMBERS:
            steps = [Fraction(str(node["multipleOf"])) for node in flat if "multipleOf" in node]
            return not any(Fraction(str(value)) % step for step in steps) and all(
                compare(value, node[key])
                for node in flat for key, compare in COMPARED.items() if key in node
            )  # fmt: skip
        return True

    def _allows(self, value: Any, schemas: Conjunction) -> bool:
        return any(self.allowed(value, flat) for flat in self.alternatives(schemas))

    def _values(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a schema lists, by their form."""
        found = self._forms.get(id(node))
        if found is None:
            found = {form(value): value for value in node.get("enum", [node.get("const")])}
            if "const" in node:
                known = form(node["const"])
                found = {known: node["const"]} if known in found else {}
            self._forms[id(node)] = found
        return found


def _only_branches(schema: Any) -> bool:
    """Whether a schema is a reference or a list of branches, and says nothing itself."""
    return not isinstance(schema, bool) and list(schema) in (["$ref"], ["anyOf"])


def kinds(flat: Conjunction) -> frozenset[str]:
    """The kinds of value that the types leave."""
    left = EVERY
    for names in (node["type"] for node in flat if "type" in node):
        given = {names} if isinstance(names, str) else set(names)
        left &= given | (NUMBERS if "number" in given else set())
    return left


def lists(flat: Conjunction) -> bool:
    """Whether only listed values can satisfy a flat conjunction."""
    return any("enum" in node or "const" in node for node in flat)


def limits(flat: Conjunction, kind: str) -> tuple[int, float]:
    """The least and the most characters, items or keys that the conjunction allows."""
    low, high = f"min{COUNTED[kind]}", f"max{COUNTED[kind]}"
    least = max((node[low] for node in flat if low in node), default=0)
    return least, min((node[high] for node in flat if high in node), default=math.inf)


def bounds(flat: Conjunction) -> tuple[float, float]:
    """The lowest and the highest number, as if open bounds were closed."""
    lows = [node[key] for node in flat for key in ("minimum", "exclusiveMinimum") if key in node]
    highs = [node[key] for node in flat for key in ("maximum", "exclusiveMaximum") if key in node]
    return max(lows, default=-math.inf), min(highs, default=math.inf)


def required(flat: Conjunction) -> set[str]:
    """The keys that an object must have."""
    return {name for node in flat for name in node.get("required", ())}


def prefix_length(flat: Conjunction) -> int:
    """How many items of a list may have a schema of their own."""
    return max((len(node.get("prefixItems", ())) for node in flat), default=0)


def item(flat: Conjunction, number: int) -> Conjunction:
    """What holds for an item of a list."""
    found = []
    for node in flat:
        prefix = node.get("prefixItems", ())
        found.append(prefix[number] if number < len(prefix) else node.get("items", True))
    return tuple(found)


def member(flat: Conjunction, name: str) -> Conjunction:
    """What holds for a key's value."""
    found: list[Any] = []
    for node in flat:
        own = [node["properties"][name]] if name in node.get("properties", ()) else []
        own += [
            schema for pattern, schema in node.get("patternProperties", {}).items()
            if _matches(name, [whole(pattern)])
        ]  # fmt: skip
        found += own or [node.get("additionalProperties", True)]
    return tuple(found)


def patterns(flat: Conjunction) -> list[str]:
    """Expressions that a whole string must match."""
    return [whole(node["pattern"]) for node in flat if "pattern" in node]


def _matches(text: str, expressions: Sequence[str]) -> bool:
    """Whether all of some expressions match a text; by automata, so none takes for ever."""
    terminals = " & ".join((json.dumps(text), *map(terminal, expressions)))
    return not expressions or has_text(f"start: T\nT: {terminals}")


def _kind(value: Any) -> str:
    if isinstance(value, float):
        return "integer" if value.is_integer() else "fraction"
    return next(kind for kind_of, kind in KINDS if isinstance(value, kind_of))


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
