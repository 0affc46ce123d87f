"""Schemas of others: each becomes a grammar or a refusal, in an answer and in a call."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_specifications
import pytest

from dgemma.constrain.sources import make_grammar
from dgemma.errors import InvalidRequest
from dgemma.request_parts import ToolUse
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer

Count = Callable[[int, int], int]
SUITE = os.environ.get("JSON_SCHEMA_TEST_SUITE")
"""A checkout of the official JSON-Schema-Test-Suite; `jsonschema` reads the same variable."""


def meta_schemas() -> Iterator[tuple[str, Any]]:
    """The schemas of all drafts and of their vocabularies, whole and each of their parts."""
    root = Path(jsonschema_specifications.__file__).parent
    for path in sorted((root / "schemas").rglob("*")):
        if path.is_file():
            schema = json.loads(path.read_text(encoding="utf-8"))
            yield path.as_posix(), schema
            for group in ("$defs", "definitions", "properties"):
                for name, part in schema.get(group, {}).items():
                    yield f"{path.as_posix()} {name}", part


def suite() -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    """(place, schema, valid values, invalid values) of the official suite."""
    for path in sorted(Path(SUITE or "").glob("tests/draft*/**/*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            values = {good: [test["data"] for test in case["tests"] if test["valid"] is good]
                      for good in (True, False)}  # fmt: skip
            yield f"{path} {case['description']}", case["schema"], values[True], values[False]


def made(place: str, schema: Any, tokenizer: Tokenizer) -> Any:
    """The grammar of JSON texts, if the schema is not refused."""
    ends = MarkerIds.of(tokenizer).ends
    parameters = {"type": "object", "properties": {"v": schema}}
    calls = ToolUse([{"function": {"name": "f", "parameters": parameters}}])
    grammar = None
    for kind, value in (("tools", calls), ("json_schema", schema)):
        try:
            grammar = make_grammar(kind, value, tokenizer, ends)
        except InvalidRequest as error:
            assert ";" in str(error) or "?" in str(error), (place, error)
            grammar = None
    return grammar


@pytest.mark.slow
def test_meta_schemas(nano: Tokenizer, count: Count) -> None:
    """Catches a traceback, or a crash, from what the drafts' own schemas hold."""
    schemas = [*meta_schemas()]
    assert len(schemas) > 200
    grammars = [
        made(place, schema, nano)
        for place, schema in random.Random(1).sample(schemas, count(60, len(schemas)))
    ]
    assert sum(grammar is not None for grammar in grammars) > len(grammars) // 4


@pytest.mark.slow
@pytest.mark.skipif(SUITE is None, reason="JSON_SCHEMA_TEST_SUITE names no checkout of the suite")
def test_official_suite(nano: Tokenizer, count: Count) -> None:
    """Catches a traceback, a crash, and an invalid value that a grammar takes."""
    cases = [*suite()]
    for place, schema, _, invalid in random.Random(2).sample(cases, count(200, len(cases))):
        grammar = made(place, schema, nano)
        for value in invalid if grammar is not None and "draft2020-12" in place else ():
            matcher = grammar.matcher()
            ids = nano.encode(json.dumps(value, ensure_ascii=False))
            taken = matcher.accept(ids) == len(ids) and matcher.accepting
            assert not taken, (place, schema, value)
