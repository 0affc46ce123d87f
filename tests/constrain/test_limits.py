"""Bounds of schemas, patterns and grammars: at the bound all is well, one past it is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgemma.constrain import limits, tool_calls
from dgemma.constrain.json_schema import checked_schema
from dgemma.constrain.limits import LIMITS, Limit, table
from dgemma.constrain.sources import make_grammar
from dgemma.errors import InvalidRequest
from dgemma.request_parts import ToolUse
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer

PAGE = Path(__file__).parents[2] / "docs/canvas.md"
S: dict[str, Any] = {"type": "string"}


def named(count: int) -> dict[str, Any]:
    """So many properties."""
    return {f"p{k}": S for k in range(count)}


def nested(count: int) -> Any:
    """Lists of lists, by references; each level is two objects of the schema."""
    defs: dict[str, Any] = {
        f"d{k}": {"type": "array", "items": {"$ref": f"#/$defs/d{k + 1}"}}
        for k in range(count // 2 - 2)
    }
    last = f"d{count // 2 - 2}"
    leaf = {"type": "array", "items": {"type": "array"}} if count % 2 else {"type": "array"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}},
            "$defs": {**defs, last: leaf}}  # fmt: skip


def optional(count: int) -> Any:
    """Properties of which at least one must be there."""
    return {"type": "object", "properties": named(count), "additionalProperties": False,
            "minProperties": 1}  # fmt: skip


def keys(patterns: int, names: int = 0) -> Any:
    """An object with patterns for its keys, and names."""
    return {"type": "object", "properties": named(names), "additionalProperties": False,
            "patternProperties": {f"^k{k}$": S for k in range(patterns)}}  # fmt: skip


SCHEMAS: list[tuple[Limit, Callable[[int], Any]]] = [
    (limits.PATTERN, lambda n: {**S, "pattern": "a" * n}),
    (limits.PATTERNS, lambda n: {**S, "allOf": [{"pattern": f"{k}"} for k in range(n)]}),
    (limits.PATTERNS, lambda n: {**S, "maxLength": 50, "allOf": [
        {"pattern": f"{k}"} for k in range(n - 1)]}),
    (limits.PATTERNS, lambda n: {"allOf": [
        {"type": "object", "properties": {"a": {**S, "pattern": f"{k}"}}} for k in range(n)]}),
    (limits.GROUPS, lambda n: {**S, "pattern": "(" * n + "a" + ")" * n}),
    (limits.SUBSCHEMAS, lambda n: {"allOf": [{"properties": named(500)} for _ in range(19)] + [
        {"properties": named(n - 19 * 501 - 2)}]}),
    (limits.LITERAL, lambda n: {"const": "a" * (n - 2)}),
    (limits.LITERAL, lambda n: {"enum": [1, ["é" * ((n - 4) // 2) + "a" * (n % 2)]]}),
    (limits.VALUES, lambda n: {"enum": [*range(n)]}),
    (limits.PROPERTIES, lambda n: {"type": "object", "properties": named(n)}),
    (limits.PROPERTIES, lambda n: {"type": "object", "required": [*named(n)]}),
    (limits.COUNTED_PROPERTIES, optional),
    (limits.KEY_PATTERNS, keys),
    (limits.KEY_MATCHES, lambda n: keys(20 if n % 20 == 0 else 21, -(-n // 20))),
    (limits.MULTIPLE, lambda n: {"type": "integer", "multipleOf": n - 1 if n % 10 == 0 else n}),
    (limits.DEPTH, lambda n: nested(n - 1)),
]  # fmt: skip
GRAMMARS: list[tuple[Limit, str, Callable[[int], Any]]] = [
    (limits.REGEX, "regex", lambda n: "a" * n),
    (limits.GROUPS, "regex", lambda n: "(" * n + "a" + ")" * n),
    (limits.GRAMMAR, "grammar", lambda n: 'start: "a" //' + "b" * (n - 13)),
    (limits.RULES, "grammar", lambda n: "root ::= [a-z]\n" + "".join(
        f"r{k} ::= [a-z]\n" for k in range(n - 1))),
    (limits.CHAIN, "grammar", lambda n: "start: r1\n" + "".join(
        f"r{k}: r{k + 1}\n" for k in range(1, n - 1)) + f'r{n - 1}: "a"'),
    (limits.LITERAL, "choices", lambda n: ["a" * n]),
    (limits.COLUMNS, "structure", lambda n: "table:" + ",".join("a" * n)),
    (limits.CELLS, "structure", lambda n: "table:" + ",".join("a" * (20 if n % 20 == 0 else 23)) + (
        f";rows={n // 20 if n % 20 == 0 else n // 23}")),
    (limits.ITEMS, "structure", lambda n: f"table:a;rows={n}"),
    (limits.ITEMS, "structure", lambda n: f"numbered:{n}"),
    (limits.NAME, "structure", lambda n: f"fence:{'é' * n}"),
    (limits.CHOICES, "choices", lambda n: [str(k) for k in range(n)]),
]  # fmt: skip


@pytest.mark.fault("R C1", "R C2")
@pytest.mark.parametrize(("limit", "schema"), SCHEMAS, ids=lambda one: getattr(one, "what", None))
def test_schemas(limit: Limit, schema: Callable[[int], Any]) -> None:
    """Catches a bound that nobody keeps, and one that stops short of what it says."""
    assert checked_schema(schema(limit.most))
    with pytest.raises(InvalidRequest) as caught:
        checked_schema(schema(limit.most + 1))
    assert f"{limit.what}, at most {limit.most} are allowed; {limit.remedy}" in str(caught.value)


@pytest.mark.slow
@pytest.mark.fault("R C2")
@pytest.mark.parametrize(
    ("limit", "kind", "value"), GRAMMARS, ids=lambda one: getattr(one, "what", None)
)
def test_grammars(limit: Limit, kind: str, value: Callable[[int], Any], nano: Tokenizer) -> None:
    """The same for regular expressions, grammars and choices, which are compiled."""
    ends = MarkerIds.of(nano).ends
    assert make_grammar(kind, value(limit.most), nano, ends)
    with pytest.raises(InvalidRequest) as caught:
        make_grammar(kind, value(limit.most + 1), nano, ends)
    assert f"{limit.what}, at most {limit.most} are allowed; {limit.remedy}" in str(caught.value)


def test_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tools that take the product of their keys' patterns, or of rules, without an end."""
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": named(9)}}}

    def written(most: int) -> bool:
        monkeypatch.setattr(tool_calls, "TOOL_RULES", limits.TOOL_RULES._replace(most=most))
        return bool(tool_calls.calls_lark(ToolUse([tool])))

    for most in range(1, 50):
        with contextlib.suppress(InvalidRequest):
            assert written(most) and 9 < most < 40
            break
    with pytest.raises(InvalidRequest, match=f"{most} rules.* at most {most - 1} are allowed"):
        written(most - 1)


def test_every_limit_is_tested_and_told() -> None:
    """Catches a bound without a test, and a page that tells another."""
    tested = {limit for limit, *_ in [*SCHEMAS, *GRAMMARS]} | {limits.TOOL_RULES}
    assert tested == set(LIMITS)
    assert {one for one in vars(limits).values() if isinstance(one, Limit)} == set(LIMITS)
    assert table() in PAGE.read_text(encoding="utf-8"), table()


@pytest.mark.fault("P A5")
@pytest.mark.parametrize("step", [1_000_000_000, 16777216, 1 << 31, 1048576, 4096000, 2.0**-20])
def test_large_multiples_are_refused_at_once(step: float) -> None:
    """Catches a number in a schema that decides on the work: a reader of it has as many states."""
    parts = [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967)]
    for schema in ({"type": "number", "multipleOf": step}, {"allOf": parts}):
        with pytest.raises(InvalidRequest, match="multiply yourself"):
            checked_schema(schema)


@pytest.mark.fault("P A5")
@pytest.mark.parametrize("step", [1, 7, 10, 1000, 1_000_000, 9973, 0.5, 0.0078125])
def test_zero_is_a_multiple_of_everything(step: float, nano: Tokenizer) -> None:
    """Catches a search for an ending that does not see the first text that there is."""
    schema = {"type": "number", "multipleOf": step}
    if step == 0.0078125:
        with pytest.raises(InvalidRequest, match="multiply yourself"):
            checked_schema(schema)
        return
    grammar = make_grammar("json_schema", schema, nano, MarkerIds.of(nano).ends)
    assert [grammar.symbols.ids[k] for k in grammar.text] == nano.encode("0")
