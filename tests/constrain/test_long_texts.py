"""Long texts in a language, and long counts: one walk of them must not stop everybody's steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from dgemma.constrain import guidance
from dgemma.constrain import matcher as grammar_matcher
from dgemma.constrain.matcher import Grammar
from dgemma.constrain.sources import make_grammar
from dgemma.errors import InvalidRequest
from dgemma.matcher import run_search
from dgemma.request_parts import ToolUse
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


def ends_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The end ids of a tokenizer."""
    return MarkerIds.of(tokenizer).ends


def of_schema(schema: Any, tokenizer: Tokenizer) -> Grammar:
    """A schema's grammar."""
    return make_grammar("json_schema", schema, tokenizer, ends_of(tokenizer))


LONG = "word, " * 4000
LITERALS: dict[str, Callable[[Tokenizer], Grammar]] = {
    "choices": lambda t: make_grammar("choices", [LONG, "b" + LONG], t, ends_of(t)),
    "regex": lambda t: make_grammar("regex", LONG, t, ends_of(t)),
    "lark": lambda t: make_grammar("grammar", f"start: {json.dumps(LONG)}", t, ends_of(t)),
    "const": lambda t: of_schema({"const": LONG}, t),
    "enum": lambda t: of_schema({"enum": [LONG, "b" + LONG, 3.5]}, t),
    "tool": lambda t: make_grammar("tools", ToolUse([{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "properties": {"a": {"const": LONG}}},
    }}]), t, ends_of(t)),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERALS)
def test_long_texts(name: str, nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a long text that is searched byte by byte: minutes, in which all others wait."""
    asked, options = list[object](), guidance.GrammarAutomaton.options
    monkeypatch.setattr(
        guidance.GrammarAutomaton, "options", lambda walk: asked.append(walk) or options(walk)
    )
    matcher = LITERALS[name](nano).matcher()
    for _ in range(2):
        completion = run_search(matcher.completion(len(LONG) + 99))
        assert completion is not None and run_search(matcher.can_complete(len(LONG) + 99))
        half = completion[: len(completion) // 2]
        assert matcher.accept(half) == len(half)
        rest = run_search(matcher.completion(len(LONG)))
        assert rest is not None and run_search(matcher.completion(len(rest) // 2)) is None
        assert matcher.accept(rest) == len(rest) and matcher.accepting
        matcher.undo(len(half) + len(rest))
    assert len(asked) < 1000


COUNTS: list[Any] = [
    {"type": "string", "minLength": 6000},
    {"type": "string", "minLength": 6000, "maxLength": 6000},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2000},
]


@pytest.mark.parametrize("schema", COUNTS, ids=["string", "exact string", "list"])
def test_long_counts(schema: Any, nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an end that is beyond a search, and a search where the known text's rest is one."""
    matcher = of_schema(schema, nano).matcher()
    begun = nano.encode('"Mira' if schema["type"] == "string" else "[12, 345,")
    assert matcher.accept(begun) == len(begun)
    completion = run_search(matcher.completion(6100))
    assert completion is not None
    monkeypatch.setattr(grammar_matcher, "shortest", lambda *_, **__: pytest.fail("a search"))
    assert run_search(matcher.can_complete(6100))
    assert matcher.accept(completion) == len(completion) and matcher.accepting
    value = json.loads(nano.decode(begun + completion))
    assert jsonschema.Draft202012Validator(schema).is_valid(value)


def test_too_long_texts(nano: Tokenizer) -> None:
    """Catches a text beyond the bound whose refusal speaks of something else."""
    with pytest.raises(InvalidRequest, match=r"choices\[1\]: 40000 bytes .* at most 32768"):
        make_grammar("choices", ["a", "é" * 20000], nano, ends_of(nano))
    with pytest.raises(InvalidRequest, match="40002 bytes .* at most 32768"):
        of_schema({"const": "a" * 40000}, nano)
