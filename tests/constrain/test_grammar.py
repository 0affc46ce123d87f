"""Grammars from schemas, regexes, grammars and choices: kept to in full, or refused by name."""

from __future__ import annotations

import gc
import json
import random
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from dgemma.constrain import guidance
from dgemma.constrain.limits import CHOICES
from dgemma.constrain.matcher import Grammar
from dgemma.constrain.sources import make_grammar
from dgemma.errors import EngineError, InvalidRequest, MissingExtra
from dgemma.matcher import run_search
from dgemma.text.parse import MarkerIds
from dgemma.text.token_table import token_table_of
from dgemma.text.tokenizer import Tokenizer
from tests.support.schemas import GRAMMARS, REGEXES, SCHEMAS, random_walk, walk_length

Count = Callable[[int, int], int]


def ends_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The end ids of a tokenizer."""
    return MarkerIds.of(tokenizer).ends


def of_schema(schema: Any, tokenizer: Tokenizer) -> Grammar:
    """A schema's grammar."""
    return make_grammar("json_schema", schema, tokenizer, ends_of(tokenizer))


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole text is in the language."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text)
    return matcher.accept(ids) == len(ids) and matcher.accepting


def finished_texts(grammar: Grammar, tokenizer: Tokenizer, name: str, count: int) -> list[str]:
    """Texts of random walks with their closings; checks every id on the way."""
    token_table = token_table_of(tokenizer)
    alphabet = grammar.matcher().alphabet()
    texts = []
    for k in range(count):
        draw = random.Random(f"{name} {k}")
        matcher = grammar.matcher()
        ids = random_walk(matcher, token_table, draw, walk_length(draw))
        completion = run_search(matcher.completion(512))
        assert completion is not None, f"{name}: no end after {tokenizer.decode(ids)!r}"
        assert matcher.accept(completion) == len(completion) and matcher.accepting
        ids += completion
        assert ends_of(tokenizer).isdisjoint(ids)
        if alphabet is not None:
            assert tokenizer.special_ids.isdisjoint(ids)
            assert set(ids) <= set(token_table.ids(alphabet).tolist())
        texts.append(tokenizer.decode(ids, control=True))
    return texts


def test_the_corpus_is_large() -> None:
    """Catches a corpus that shrinks: the promise is 150 schemas, 50 regexes, 10 grammars."""
    assert len(SCHEMAS) >= 150 and len(REGEXES) >= 50 and len(GRAMMARS) >= 10


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_finished_text_is_valid(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches a keyword that is read but not enforced, by an independent validator.

    No false alarms: every text of the language must be valid.
    """
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in finished_texts(of_schema(schema, nano), nano, name, count(3, 60)):
        assert not [error.message for error in validator.iter_errors(json.loads(text))], text


@pytest.mark.parametrize("name", REGEXES)
def test_every_finished_text_matches(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches a regex that Python reads in another way than the grammar library."""
    grammar = make_grammar("regex", REGEXES[name], nano, ends_of(nano))
    for text in finished_texts(grammar, nano, name, count(3, 60)):
        assert re.fullmatch(REGEXES[name], text), text


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_grammar_ends(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches a context-free grammar whose texts cannot be ended, and a fence left open."""
    grammar = make_grammar("grammar", GRAMMARS[name], nano, ends_of(nano))
    for text in finished_texts(grammar, nano, name, count(3, 60)):
        assert text
        if name == "code-fence":
            assert re.fullmatch(r"```[^\n`]*\n(?:(?!```)[^\n]*\n)*```", text), text
        if name == "markdown-table":
            marks = {line.count("|") for line in text.split("\n")}
            assert len(marks) == 1 and len(text.split("\n")) >= 3, text


def test_real_vocabulary(gemma: Tokenizer, count: Count) -> None:
    """Catches what only 262,144 tokens bring: long tokens over the edges of the structure."""
    draw = random.Random(5)
    for name in draw.sample(sorted(SCHEMAS), count(12, len(SCHEMAS))):
        validator = jsonschema.Draft202012Validator(SCHEMAS[name])
        for text in finished_texts(of_schema(SCHEMAS[name], gemma), gemma, name, count(1, 5)):
            assert validator.is_valid(json.loads(text)), (name, text)


@pytest.mark.parametrize("name", ["person", "json", "enum of marks", "tree", "list of kinds"])
def test_the_mask_is_what_is_taken(name: str, nano: Tokenizer) -> None:
    """Catches a mask that allows what is then refused, and the other way round, for every id.

    Where the text is forced the mask has its first token alone; other spellings are still taken.
    """
    matcher, token_table = of_schema(SCHEMAS[name], nano).matcher(), token_table_of(nano)
    random_walk(matcher, token_table, random.Random(3), 9)
    allowed = set(token_table.ids(matcher.allowed()).tolist())
    first = matcher.forced()[:1]
    for token_id in range(nano.vocab_size):
        taken = matcher.accept([token_id])
        if taken != (token_id in allowed):
            assert taken and allowed == set(first), nano.token_text(token_id)
        matcher.undo(taken)
    assert set(token_table.ids(matcher.allowed()).tolist()) == allowed
    assert matcher.accept([-1]) == matcher.accept([nano.vocab_size]) == 0


def test_undo_is_exact(nano: Tokenizer, count: Count) -> None:
    """Catches a walk that remembers what it took back: mask, end, closing must be as before."""
    token_table = token_table_of(nano)
    for name in random.Random(1).sample(sorted(SCHEMAS), count(20, len(SCHEMAS))):
        draw = random.Random(name)
        matcher, fresh = (of_schema(SCHEMAS[name], nano).matcher() for _ in range(2))
        kept = random_walk(matcher, token_table, draw, draw.randrange(20))
        more = random_walk(matcher, token_table, draw, 20)
        run_search(matcher.completion(64))
        matcher.undo(len(more))
        assert fresh.accept(kept) == len(kept)
        assert (matcher.allowed() == fresh.allowed()).all()
        assert matcher.accepting == fresh.accepting
        assert run_search(matcher.completion(256)) == run_search(fresh.completion(256))


def test_form(nano: Tokenizer) -> None:
    """A model's own habit of blanks costs it repairs, or white space has no end."""
    grammar = of_schema(SCHEMAS["person"], nano)
    matcher = grammar.matcher()
    assert nano.decode(matcher.forced()) == "{"
    for text in (
        '{"name": "Mira", "age": 33}',
        '{"name":"Mira","age":33}',
        '{ "name" :"","age":1 }',
    ):
        assert takes(grammar, nano, text), text
    for other in ('{"name":  "M", "age": 33}', '{\n"name": "M", "age": 33}', '{"age": 33}'):
        assert not takes(grammar, nano, other), other
    matcher.accept(nano.encode('{"name": "Mira", "age": 3}'))
    assert matcher.finished and matcher.forced() == [] and not matcher.allowed().any()


@pytest.mark.parametrize("schema", [True, {}, "{}", '{"description": "anything"}'])
def test_any_json(schema: Any, nano: Tokenizer) -> None:
    """Catches a kind of value that "any JSON" leaves out."""
    grammar = of_schema(schema, nano)
    values = [
        None,
        True,
        0,
        -1.5,
        1e22,
        "",
        'a"\\\n\té',
        [],
        [[1], {}],
        {"a": {"b": [None, "x"]}},
    ]
    for value in values:
        assert takes(grammar, nano, json.dumps(value, ensure_ascii=False)), value
    assert takes(grammar, nano, "[1,2]") and not takes(grammar, nano, "nan")


S = {"type": "string"}
REFUSED: list[tuple[Any, str]] = [
    (False, "object or True"),
    (3, "object or True"),
    ("{", "not JSON"),
    ({"const": "\ud800"}, "surrogates"),
    ({"a": {1}}, "not JSON"),
    ({"enum": []}, "enum"),
    ({"type": "strng"}, "did you mean 'string'"),
    ({"type": []}, "type"),
    ({"tipe": "string"}, "did you mean 'type'"),
    ({"properties": {"a": {"foo": 1}}}, "#/properties/a: keyword 'foo'"),
    ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, "no integer"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
    ({**S, "minLength": 5, "maxLength": 2}, "minLength is above"),
    ({**S, "pattern": "^[A-Z]{5}$", "maxLength": 3}, "empty"),
    ({**S, "pattern": "^[A-Z]+$", "enum": ["a"]}, "empty"),
    ({"type": "array", "prefixItems": [S], "items": False, "minItems": 2}, "no finite value"),
    ({"type": "object", "required": ["z"], "additionalProperties": False}, "no finite value"),
    ({"uniqueItems": True}, "'uniqueItems'"),
    ({"contains": {}}, "'contains'"),
    ({"not": {}}, "'not'"),
    ({"if": {}, "then": {}}, "'if'"),
    ({"propertyNames": {}}, "'propertyNames'"),
    ({"dependentRequired": {}}, "'dependentRequired'"),
    ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
    ({"nullable": "yes"}, "nullable is 'yes'"),
    ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
    ({"$dynamicRef": "#a"}, "'$dynamicRef'"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, "'$schema'"),
    ({**S, "format": "phone"}, "format 'phone'"),
    ({"items": [{}]}, "prefixItems"),
    ({"minLength": -1}, "minLength"),
    ({"minItems": True}, "minItems"),
    ({"minimum": "3"}, "minimum"),
    ({"minimum": 10**20}, "2^53"),
    ({"required": "a"}, "required"),
    ({"properties": []}, "properties"),
    ({"anyOf": []}, "anyOf"),
    ({"multipleOf": 0}, "multipleOf"),
    ({"type": "number", "multipleOf": 0.1}, "binary"),
    ({"multipleOf": 5}, "without a type"),
    ({"patternProperties": {"^a": S}}, "additionalProperties"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "object", "properties": {"a": S}, "minProperties": 1}, "maxProperties"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
    ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b"]}]}, "oneOf"),
    ({"$ref": "#"}, "no finite value"),
    ({"$ref": "#/$defs/a"}, "leads nowhere"),
    ({"$ref": "#a"}, "not within"),
    ({"$ref": "https://a.example/b"}, "not within"),
    ({**S, "pattern": "a("}, "#/pattern"),
    ({**S, "pattern": r"^a\x01$"}, "control character"),
    ({**S, "pattern": r"^[ab]\v$"}, "control character"),
    ({"patternProperties": {r"^a\x01$": S}, "additionalProperties": False}, "control character"),
    ({"enum": ["a", {"b": ["\x00"]}]}, "control character"),
    ({"const": {"\x1f": 1}}, "control character"),
    ({**S, "pattern": "(?=a)b"}, "look-around"),
    ({**S, "pattern": r"\bfoo"}, "look-around"),
    ({**S, "pattern": r"\p{L}"}, "a property of Unicode"),
    ({**S, "pattern": "a++"}, "possessive"),
    ({**S, "pattern": "[a&&b]"}, "doubled mark"),
    ({**S, "pattern": r"[^\W]"}, "spell"),
    ({"type": "object", "properties": {"o": {"$ref": "#/$defs/x"}}, "$defs": {"x": {
        "type": "object", "properties": {"n": {"$ref": "#/$defs/x"}}, "required": ["n"],
    }}}, "no finite value"),
]  # fmt: skip


def test_one_spelling(nano: Tokenizer) -> None:
    """A key that is a property's name when it is read comes a second time, and is not checked."""
    grammar = of_schema({"properties": {"name": S, "a/b\n": S}, "additionalProperties": True}, nano)
    for key in (r"n\u0061me", r"a\/b\n", r"a/b\u000a", r"\u00e9", r"\u0001"):
        assert not takes(grammar, nano, f'{{"{key}":5}}'), key
    for text in (r'{"name":"a\n\"\\/","a/b\n":"\u00e9"}', r'{"nam":5,"\n":5}', '{"\u00e9":"\x7f"}'):
        assert takes(grammar, nano, text) is ("\\u" not in text and "\x7f" not in text), text
    for pattern in (r"^[^\x00-\x1f]+$", r"^\\x01$", r"^a\x0a\u000D$", r"^[\x01b]$"):
        assert make_grammar("json_schema", {**S, "pattern": pattern}, nano, [])


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=[repr(s)[:60] for s, _ in REFUSED])
def test_refused_schemas(schema: Any, said: str, nano: Tokenizer) -> None:
    """Catches a schema that is quietly not kept to, or fails only when the answer is half done."""
    with pytest.raises(InvalidRequest, match="json_schema") as caught:
        of_schema(schema, nano)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("regex", "said"),
    [("a(", "unclosed group"), ("", "not empty"), ("(?=a)b", "look"), ("x^y", "lookaround"),
     (r"[^\x00-\U0010ffff]", "no text"), ("\ud800", "surrogate"), ("a{100000000}", "no text")],
)  # fmt: skip
def test_refused_regexes(regex: str, said: str, nano: Tokenizer) -> None:
    """Catches a broken regex that is found out only in mid-answer."""
    with pytest.raises(InvalidRequest, match="regex") as caught:
        make_grammar("regex", regex, nano, ends_of(nano))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("lark", "said"),
    [("start: x", "unknown name"), ("", "not empty"), ('start: "a" start', "Too many items"),
     ("start: <|nope|>", "unknown special token"), ('start: "a" <turn|>', "ends every text"),
     ("root ::= (", "GBNF"), ("start[max_tokens=3]: /a/", "max_tokens"), ("start: <[3]>", "<["),
     ('start: %json {"not": {}}', "not"), ("markdown-tabel", "Expected token")],
)  # fmt: skip
def test_refused_grammars(lark: str, said: str, nano: Tokenizer) -> None:
    """Catches a grammar without a text, and one that would end or count tokens by itself."""
    with pytest.raises(InvalidRequest, match="grammar") as caught:
        make_grammar("grammar", lark, nano, ends_of(nano))
    assert said in str(caught.value)


def test_words_of_the_refusals_may_stand_in_texts(nano: Tokenizer) -> None:
    """Catches a check of a grammar's code that reads its quoted texts and comments too."""
    lark = 'start: "max_tokens=" /[a-z]/ "<turn|>"  // stop=3\n'
    assert takes(make_grammar("grammar", lark, nano, ends_of(nano)), nano, "max_tokens=b<turn|>")


def test_control_tokens_of_a_grammar(nano: Tokenizer) -> None:
    """A grammar may name a control token; its spelling in ordinary text is another thing."""
    grammar = make_grammar("grammar", 'start: <|think|> "x"', nano, ends_of(nano))
    assert grammar.matcher().forced() == [nano.id_of("<|think|>"), *nano.encode("x")]
    assert not takes(grammar, nano, "<|think|>x")


@pytest.mark.parametrize(
    "choices",
    [[], "abc", ["a", ""], ["\ud800"], [3], {}, ["a" * 40_000], [*map(str, range(2000))]],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_refused_choices(choices: Any, nano: Tokenizer) -> None:
    """Catches choices from which no answer can be made."""
    with pytest.raises(InvalidRequest, match="^choices"):
        make_grammar("choices", choices, nano, ends_of(nano))


def test_as_many_choices_as_may_be(nano: Tokenizer) -> None:
    """A limit that is one too high: the language then breaks off in mid-text."""
    most = [str(number) for number in range(CHOICES.most)]
    assert takes(make_grammar("choices", most, nano, ends_of(nano)), nano, most[-1])


def test_choices(tokenizer: Tokenizer) -> None:
    """Every choice can be written and nothing else, whatever marks are in it."""
    choices = [
        "yes",
        "no",
        "no way",
        'a "b" \\ {c}',
        "é\u2028😀\x7f",
        "<turn|>",
        "/a/",
        " lead",
        "\n",
    ]
    grammar = make_grammar("choices", choices, tokenizer, ends_of(tokenizer))
    for choice in choices:
        assert takes(grammar, tokenizer, choice), choice
    assert not takes(grammar, tokenizer, "no wa") and not takes(grammar, tokenizer, "yesno")
    assert tokenizer.decode(run_search(grammar.matcher().completion(9)) or []) in choices
    token_table, alphabet = token_table_of(tokenizer), grammar.matcher().alphabet()
    assert alphabet is not None
    texts = [choice.encode() for choice in choices]
    for token_id in range(0, tokenizer.vocab_size, 97):
        token = token_table.table[token_id]
        inside = bool(token) and any(token in text for text in texts)
        assert inside == bool(alphabet[token_id // 32] >> token_id % 32 & 1)


def test_too_complex_in_mid_text(nano: Tokenizer) -> None:
    """Catches a library error that is taken for "nothing is allowed" while an answer is written.

    The library's tables are shared by all walks and stay broken, so the next walk needs new ones.
    """
    grammar = of_schema({}, nano)
    matcher = grammar.matcher()
    matcher._tokens = SimpleNamespace(
        is_error=lambda: True, get_error=lambda: "ParserTooComplex\nlong listing",
        is_stopped=lambda: True, try_consume_tokens=lambda ids: 0,
    )  # fmt: skip
    before = grammar._roots
    with pytest.raises(EngineError, match="ParserTooComplex") as caught:
        matcher.accept(nano.encode("1"))
    assert "listing" not in str(caught.value)
    with pytest.raises(EngineError, match="simplify"):
        matcher.allowed()
    assert takes(grammar, nano, "1") and grammar._roots is not before


def test_without_the_library(nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback of an import where the remedy is one command."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"pip install 'dgemma\[constrain\]'"):
        of_schema({}, nano)


def test_a_vocabulary_is_handed_over_once(nano_directory: Path) -> None:
    """Catches a second of work for every request at 262,144 ids, and a tokenizer kept for ever."""
    tokenizer = Tokenizer.from_directory(nano_directory)
    first, second = (guidance._vocabularies(tokenizer) for _ in range(2))
    assert first is second and token_table_of(tokenizer) is token_table_of(tokenizer)
    assert takes(of_schema({"const": 1}, tokenizer), tokenizer, "1")
    gone = weakref.ref(tokenizer)
    del tokenizer, first, second
    gc.collect()
    assert gone() is None
