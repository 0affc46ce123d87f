"""Grammars that another process has compiled: the same as those that are compiled here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dgemma.constrain import cache as cache_module
from dgemma.constrain import matcher as matcher_module
from dgemma.constrain.cache import KEPT, GrammarCache
from dgemma.constrain.precompiled import Precompiled, precompile
from dgemma.params import SamplingParams
from dgemma.request_parts import ToolUse
from dgemma.text.tokenizer import Tokenizer
from tests.support.tokenizers import NANO, WEATHER

pytestmark = pytest.mark.fault("R C1", "P A1", "P A5")

TOKENIZER = Tokenizer.from_directory(NANO)
ENDS = (1, 106)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x+y$"}},
          "required": ["a"]}  # fmt: skip
CASES: list[tuple[dict[str, Any], ToolUse | None]] = [
    ({"json_schema": SCHEMA}, None),
    ({"json_schema": True}, None),
    ({"regex": "[a-f]{2}|z"}, None),
    ({"regex": "a*"}, None),
    ({"grammar": 'start: "a" | "b" <|channel>'}, None),
    ({"choices": ["yes", "no é"]}, None),
    ({}, ToolUse([WEATHER])),
    ({}, ToolUse([WEATHER], required=False)),
]


@pytest.mark.parametrize(("fields", "calls"), CASES)
def test_the_same_walk(
    fields: dict[str, Any], calls: ToolUse | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a part of a grammar that is lost on the way, and work that is done twice."""
    params = SamplingParams(**fields)
    expected = GrammarCache(TOKENIZER, ENDS)
    usual = expected.matcher_for(params, calls=calls)
    cache = GrammarCache(TOKENIZER, ENDS)
    wanted = cache.wanted(params, calls)
    assert wanted is not None and not cache.has("", *wanted)
    kind, value = wanted
    sent = json.loads(json.dumps(value))
    packed = json.loads(json.dumps(precompile(kind, sent, TOKENIZER, ENDS).packed()))
    monkeypatch.setattr(cache_module, "make_grammar", None)
    monkeypatch.setattr(matcher_module, "shortest", None)
    cache.keep("", kind, value, Precompiled.unpacked(packed))
    assert cache.has("", *wanted)
    found = cache.matcher_for(params, calls=calls)
    monkeypatch.undo()
    assert usual is not None and found is not None and usual[1] == found[1]
    one, two = usual[0], found[0]
    for _ in range(4):
        assert np.array_equal(one.allowed(), two.allowed()) and one.forced() == two.forced()
        assert one.accepting == two.accepting
        first, second = one.alphabet(), two.alphabet()
        assert (first is None) == (second is None)
        assert first is None or second is None or np.array_equal(first, second)
        ids = one.forced() or TOKENIZER.encode("a")[:1]
        assert one.accept(ids) == two.accept(ids)
    assert expected._grammar("", kind, value).text == cache._grammar("", kind, value).text
    assert expected._grammar("", kind, value).words == cache._grammar("", kind, value).words


def test_no_more_are_kept_than_of_ones_own() -> None:
    """Catches a cache that grows with the grammars from elsewhere."""
    cache = GrammarCache(TOKENIZER, ENDS)
    made = precompile("choices", ["a"], TOKENIZER, ENDS)
    for number in range(KEPT + 3):
        cache.keep("", "choices", [str(number)], made)
    kept = [cache.has("", "choices", [str(number)]) for number in range(KEPT + 3)]
    assert kept == [False] * 3 + [True] * KEPT
