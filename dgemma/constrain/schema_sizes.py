"""Bounds of checked schemas that only show where references and branches are followed.

The grammar library follows references by recursion, which ends in a stack overflow; and it takes
the product of the states of all patterns, and of all multiples, that hold at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dgemma.constrain.graph import longest_way
from dgemma.constrain.limits import DEPTH, MULTIPLE, PATTERNS
from dgemma.constrain.schema_numbers import states
from dgemma.constrain.schema_proofs import (
    REFERRING,
    Conjunction,
    SchemaReader,
    item,
    member,
    prefix_length,
    resolve,
)

_LENGTHS = frozenset(("minLength", "maxLength"))


def check_depth(root: Mapping[str, Any], refs: Iterable[str], name: str) -> None:
    """Raise InvalidRequest if subschemas and references lead too far down.

    Args:
        root: a checked schema.
        refs: the references in it.
        name: of the schema, for messages.
    """
    units = {ref: resolve(ref, root) for ref in {"#", *refs}}
    weights: dict[str, int] = {}
    edges: dict[str, set[str]] = {}
    for ref, unit in units.items():
        weights[ref], edges[ref] = 1, set()
        todo: list[tuple[Any, int]] = [(unit, 1)]
        while todo:
            node, depth = todo.pop()
            weights[ref] = max(weights[ref], depth)
            if isinstance(node, dict):
                if isinstance(node.get("$ref"), str):
                    edges[ref].add(node["$ref"])
                todo += [
                    (part, depth + 1) for part in node.values() if isinstance(part, dict | list)
                ]
            else:
                todo += [(part, depth + 1) for part in node if isinstance(part, dict | list)]
    DEPTH.check(longest_way(weights, edges), name)


def check_conjunctions(root: Any, nodes: Iterable[Any], name: str) -> None:
    """Raise InvalidRequest if too many patterns, or too large multiples, hold at once.

    Args:
        root: a checked schema.
        nodes: its subschemas.
        name: of the schema, for messages.
    """
    schemas = [node for node in nodes if isinstance(node, dict)]
    if _fits(tuple(schemas)) or not any(map(_joins, schemas)):
        return
    reader = SchemaReader(root, None)
    seen = set[frozenset[int]]()
    todo: list[Conjunction] = [(node,) for node in schemas if _joins(node)]
    while todo:
        conjunction = tuple(node for node in todo.pop() if isinstance(node, dict))
        key = frozenset(map(id, conjunction))
        if key in seen or not (len(key) > 1 or any(map(_joins, conjunction))):
            continue
        seen.add(key)
        for flat in reader.alternatives(conjunction):
            if not _fits(flat):
                PATTERNS.check(_patterns(flat), name)
                MULTIPLE.check(states(_steps(flat)), name)
            names = {key for node in flat for key in node.get("properties", ())}
            todo += [member(flat, key) for key in names]
            todo += [item(flat, number) for number in range(prefix_length(flat) + 1)]
            todo.append(tuple(node.get("additionalProperties", True) for node in flat))


def _joins(node: Mapping[str, Any]) -> bool:
    """Whether a subschema makes others hold at once."""
    said = [key for key in node if key not in ("$defs", "definitions")]
    return "allOf" in node or (len(said) > 1 and not REFERRING.isdisjoint(said))


def _steps(flat: Conjunction) -> list[int | float]:
    return [node["multipleOf"] for node in flat if "multipleOf" in node]


def _patterns(flat: Conjunction) -> int:
    patterns = {node["pattern"] for node in flat if "pattern" in node}
    return len(patterns) + any(not _LENGTHS.isdisjoint(node) for node in flat)


def _fits(flat: Conjunction) -> bool:
    """Whether all this may hold at once."""
    steps = _steps(flat)
    return _patterns(flat) <= PATTERNS.most and (not steps or states(steps) <= MULTIPLE.most)
