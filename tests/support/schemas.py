"""The languages that the tests of structured output walk: JSON schemas, regexes, grammars.

Also the walk itself, at random through what a matcher allows.

Every schema can be satisfied and kept to in full. Names say what a case is there for.
"""

from __future__ import annotations

import random
from typing import Any

from dgemma.matcher import Matcher
from dgemma.text.token_table import TokenTable

Schema = dict[str, Any]


def obj(required: list[str] | None = None, extra: Any = False, **properties: Any) -> Schema:
    """An object; all its properties are required unless said otherwise."""
    out: Schema = {"type": "object", "properties": properties}
    out["required"] = list(properties) if required is None else required
    if extra is not None:
        out["additionalProperties"] = extra
    return out


def arr(items: Any, least: int | None = None, most: int | None = None) -> Schema:
    """A list."""
    out: Schema = {"type": "array", "items": items}
    if least is not None:
        out["minItems"] = least
    if most is not None:
        out["maxItems"] = most
    return out


def text(**words: Any) -> Schema:
    """A string."""
    return {"type": "string", **words}


def integer(**words: Any) -> Schema:
    """A whole number."""
    return {"type": "integer", **words}


def number(**words: Any) -> Schema:
    """A number."""
    return {"type": "number", **words}


STRING, INTEGER, NUMBER = text(), integer(), number()
BOOL: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
COLOURS: Schema = {"enum": ["red", "green", "blue"]}
PERSON = obj(name=STRING, age=integer(minimum=0, maximum=120))


def ref(name: str) -> Schema:
    """A reference to a definition."""
    return {"$ref": f"#/$defs/{name}"}


def defs(root: Schema, **named: Any) -> Schema:
    """A schema with definitions."""
    return {**root, "$defs": named}


SCALARS: dict[str, Schema] = {
    "any": {},
    "string": STRING,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": BOOL,
    "null": NULL,
    "string or null": {"type": ["string", "null"]},
    "every type": {"type": ["string", "number", "boolean", "null", "array", "object"]},
    "const text": {"const": "yes"},
    "const number": {"const": 3.5},
    "const object": {"const": {"a": [1, None, "é"], "b": {}}},
    "enum": COLOURS,
    "enum with common beginnings": {"enum": ["a", "ab", "abc", "b", "abd"]},
    "enum of kinds": {"enum": [1, "1", None, True, [1], {"a": 1}]},
    "enum beside type": {"type": "string", "enum": ["x", 5, "y"]},
    "enum of marks": {"enum": ['"', "\\", "\n", "}", '{"a": 1}', "</s>", "<turn|>"]},
    "enum beyond ASCII": {"enum": ["é", "日本", "😀", "\u2028"]},
    "one letter": text(minLength=1, maxLength=1),
    "at least 5": text(minLength=5),
    "at most 3": text(maxLength=3),
    "empty only": text(maxLength=0),
    "2 to 4": text(minLength=2, maxLength=4),
    "at least 80": text(minLength=80, maxLength=120),
    "plate": text(pattern="^[A-Z]{3}-[0-9]{4}$"),
    "pattern somewhere": text(pattern="[0-9]{2}"),
    "pattern at the start": text(pattern="^ab"),
    "pattern at the end": text(pattern="xy$"),
    "pattern of alternatives": text(pattern="^(cat|dog|bird)s?$"),
    "pattern with bare alternatives": text(pattern="^a|b$"),
    "pattern of repeats": text(pattern="^(ab)+c$"),
    "pattern of classes": text(pattern=r"^\w+\s\d+\S$"),
    "pattern of negations": text(pattern=r"^[^\s\d]+\D\W$"),
    "pattern and length": text(pattern="^[a-z]+$", minLength=6, maxLength=8),
    "pattern with quotes": text(pattern='^"[a-z]"$'),
    "pattern with escapes": text(pattern=r"^\\\/\.\"$"),
    "pattern beyond ASCII": text(pattern="^[é-ü]{3}$"),
    "hex colour": text(pattern="^#([0-9a-f]{3}|[0-9a-f]{6})$"),
    "version": text(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$"),
    "date": text(format="date"),
    "time": text(format="time"),
    "date and time": text(format="date-time"),
    "duration": text(format="duration"),
    "email": text(format="email"),
    "hostname": text(format="hostname"),
    "ipv4": text(format="ipv4"),
    "ipv6": text(format="ipv6"),
    "uuid": text(format="uuid"),
    "uri": text(format="uri"),
    "at least 0": integer(minimum=0),
    "0 to 9": integer(minimum=0, maximum=9),
    "below 0": integer(exclusiveMaximum=0),
    "17 to 1234": integer(minimum=17, maximum=1234),
    "-5 to 5": integer(minimum=-5, maximum=5),
    "above 1000000": integer(exclusiveMinimum=1000000),
    "one integer": integer(minimum=7, maximum=7),
    "multiple of 7": integer(multipleOf=7),
    "multiple of 7 within": integer(multipleOf=7, minimum=1000, maximum=1100),
    "multiple of 25": integer(multipleOf=25, minimum=0),
    "multiple of 3 as a number": number(multipleOf=3),
    "share": number(minimum=0, maximum=1),
    "open share": number(exclusiveMinimum=0, exclusiveMaximum=1),
    "above 0": number(exclusiveMinimum=0),
    "-1.5 to 2.25": number(minimum=-1.5, maximum=2.25),
    "temperature": number(minimum=-273.15),
    "halves": number(multipleOf=0.5, minimum=0, maximum=10),
    "quarters": number(multipleOf=0.25),
    "narrow": number(exclusiveMinimum=0.1, exclusiveMaximum=0.2),
}

LISTS: dict[str, Schema] = {
    "list": {"type": "array"},
    "list of strings": arr(STRING),
    "list of numbers": arr(NUMBER),
    "list of booleans": arr(BOOL),
    "list of nulls": arr(NULL, 2),
    "exactly 3": arr(INTEGER, 3, 3),
    "1 to 2": arr(STRING, 1, 2),
    "at least 10": arr(integer(minimum=0, maximum=9), 10),
    "empty list": arr(STRING, 0, 0),
    "list of lists": arr(arr(INTEGER, 1, 3), 1),
    "matrix": arr(arr(number(minimum=0, maximum=1), 3, 3), 3, 3),
    "list of objects": arr(PERSON, 1, 4),
    "list of enums": arr(COLOURS, 2, 5),
    "tuple": {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    "open tuple": {"type": "array", "prefixItems": [STRING, BOOL], "items": INTEGER},
    "tuple of parts": {"type": "array", "prefixItems": [COLOURS, PERSON, arr(NULL, 1)]},
    "list of anything": arr({}, 1, 3),
    "list of patterns": arr(text(pattern="^[a-f]{2}$"), 2),
    "unique said false": {**arr(INTEGER, 1), "uniqueItems": False},
    "list or null": {"anyOf": [arr(INTEGER, 1), NULL]},
}

OBJECTS: dict[str, Schema] = {
    "object": {"type": "object"},
    "empty object": obj(),
    "person": PERSON,
    "all optional": obj([], a=STRING, b=INTEGER, c=BOOL),
    "some optional": obj(["b", "d"], a=STRING, b=INTEGER, c=BOOL, d=NULL, e=NUMBER),
    "open": obj(["a"], None, a=INTEGER),
    "open with a type": obj(["a"], INTEGER, a=STRING),
    "map": {"type": "object", "additionalProperties": NUMBER},
    "map with bounds": {"type": "object", "additionalProperties": BOOL, "maxProperties": 3},
    "map with one at least": {"type": "object", "additionalProperties": BOOL, "minProperties": 1},
    "pattern keys": {
        "type": "object", "patternProperties": {"^x_[a-z]+$": INTEGER},
        "additionalProperties": False,
    },
    "pattern keys beside names": {
        **obj(["id"], False, id=INTEGER), "patternProperties": {"^tag": STRING},
    },
    "required beyond properties": {"type": "object", "required": ["z"], "properties": {"a": NULL}},
    "keys of marks": obj(**{"a b": INTEGER, 'q"': STRING, "é": BOOL, "{}": NULL, "\\": NULL}),
    "empty key": obj(**{"": INTEGER}),
    "nested": obj(a=obj(b=obj(c=obj(d=INTEGER)))),
    "nested options": obj(["a"], a=obj([], b=obj([], c=STRING), d=INTEGER), e=arr(INTEGER)),
    "address": obj(
        ["street", "city"], street=text(minLength=1), city=text(minLength=1),
        zip=text(pattern="^[0-9]{5}$"), country={"enum": ["CH", "DE", "AT"]},
    ),
    "order": obj(
        id=text(pattern="^ORD-[0-9]{6}$"), paid=BOOL, total=number(minimum=0),
        lines=arr(obj(sku=text(minLength=3, maxLength=8), count=integer(minimum=1, maximum=99)), 1),
    ),
    "event": obj(
        ["title", "start"], title=STRING, start=text(format="date-time"),
        end=text(format="date-time"), guests=arr(text(format="email")),
        place={"type": ["string", "null"]},
    ),
    "review": obj(
        rating=integer(minimum=1, maximum=5), mood={"enum": ["good", "bad", "mixed"]},
        summary=text(maxLength=200), tags=arr(text(minLength=1, maxLength=12), 1, 5),
    ),
    "many keys": obj(**{f"key{k}": INTEGER for k in range(30)}),
    "many optional keys": obj([], **{f"key{k}": BOOL for k in range(20)}),
    "last key required": obj(["z"], **{name: STRING for name in "abcxyz"}),
    "notes are ignored": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/b",
        "title": "T", "description": "D", "x-order": 3, **obj(a={**INTEGER, "default": 3}),
    },
    "long key": obj(**{"a" * 60: INTEGER}),
    "forbidden key": {"type": "object", "properties": {"a": False, "b": INTEGER}},
    "numbers": obj(a=number(minimum=0, maximum=1), b=integer(multipleOf=5, minimum=5), c=NUMBER),
    "prices": obj(
        cents=integer(minimum=0), currency={"enum": ["CHF", "EUR"]}, rate=number(multipleOf=0.125)
    ),
}  # fmt: skip

DOG = obj(kind={"const": "dog"}, barks=BOOL)
CAT = obj(kind={"const": "cat"}, lives=integer(minimum=1, maximum=9))
UNIONS: dict[str, Schema] = {
    "text or number": {"anyOf": [STRING, NUMBER]},
    "integer or null": {"anyOf": [INTEGER, NULL]},
    "one of types": {"oneOf": [STRING, INTEGER, NULL]},
    "one of consts": {"oneOf": [{"const": 1}, {"const": 2}, {"const": "a"}]},
    "one of enums": {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["c"]}]},
    "one of ranges": {"oneOf": [integer(maximum=3), integer(minimum=5)]},
    "one of kinds": {"oneOf": [DOG, CAT]},
    "any of kinds": {"anyOf": [DOG, CAT, NULL]},
    "list of kinds": arr({"oneOf": [DOG, CAT]}, 1),
    "any of overlapping": {"anyOf": [obj(a=INTEGER), obj(a=NUMBER, b=STRING)]},
    "all of": {"allOf": [obj(["a"], None, a=INTEGER), obj(["b"], None, b=STRING)]},
    "all of bounds": {"allOf": [integer(minimum=3), {"maximum": 12}, integer(multipleOf=4)]},
    "all of patterns": {"allOf": [text(pattern="^a"), text(pattern="z$"), text(maxLength=6)]},
    "beside any of": {
        **obj(["a"], None, a=INTEGER), "anyOf": [{"required": ["b"]}, {"required": ["c"]}],
    },
    "one of beside any of": {
        "anyOf": [{"minimum": 3}, {"maximum": -3}], "oneOf": [INTEGER, STRING],
    },
    "conditions as branches": {"anyOf": [
        obj(pay={"const": "card"}, card=text(pattern="^[0-9]{16}$")),
        obj(pay={"const": "cash"}),
    ]},
    "answer or refusal": {"anyOf": [obj(answer=STRING), obj(refusal={"enum": ["no", "unsafe"]})]},
    "no type": {"minLength": 2, "minimum": 5},
    "no type, keys": {"required": ["a"], "properties": {"a": INTEGER}},
    "nullable everything": obj(
        a={"type": ["integer", "null"]}, b={"type": ["string", "null"]},
        c={"anyOf": [PERSON, NULL]}, d={"anyOf": [arr(STRING), NULL]},
    ),
}  # fmt: skip

TREE = obj(["value"], value=INTEGER, left=ref("tree"), right=ref("tree"))
NODE = obj(name=STRING, children=arr(ref("node")))
REFERENCES: dict[str, Schema] = {
    "definition": defs(ref("person"), person=PERSON),
    "two definitions": defs(obj(a=ref("c"), b=ref("p")), c=COLOURS, p=PERSON),
    "definition of definitions": defs(ref("a"), a=obj(x=ref("b")), b=arr(ref("c"), 1), c=COLOURS),
    "old definitions": {"$ref": "#/definitions/p", "definitions": {"p": PERSON}},
    "reference to a property": obj(a=COLOURS, b={"$ref": "#/properties/a"}),
    "reference with siblings": defs({**ref("n"), "maximum": 50}, n=integer(minimum=40)),
    "escaped reference": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}},
    "tree": defs(ref("tree"), tree=TREE),
    "nodes": defs(ref("node"), node=NODE),
    "linked list": defs(ref("l"), l=obj(value=INTEGER, next={"anyOf": [ref("l"), NULL]})),
    "linked list, null first": defs(ref("l"), l=obj(v=BOOL, next={"anyOf": [NULL, ref("l")]})),
    "whole schema": obj(["a"], a=INTEGER, again={"$ref": "#"}),
    "nested lists": defs(ref("n"), n={"anyOf": [INTEGER, arr(ref("n"))]}),
    "nested lists, list first": defs(ref("n"), n={"anyOf": [arr(ref("n"), 1), INTEGER]}),
    "expression": defs(ref("e"), e={"anyOf": [
        obj(op={"enum": ["+", "*"]}, left=ref("e"), right=ref("e")), NUMBER,
    ]}),
    "mutual": defs(ref("a"), a=obj([], b=ref("b")), b=obj([], a=ref("a"))),
    "menu": defs(
        arr(ref("item"), 1),
        item=obj(["label"], label=text(minLength=1), items=arr(ref("item"))),
    ),
    "json": defs(ref("v"), v={"anyOf": [
        NULL, BOOL, NUMBER, STRING, arr(ref("v")),
        {"type": "object", "additionalProperties": ref("v")},
    ]}),
    "two branches needed": defs(ref("t"), t={"anyOf": [arr(ref("t"), 2, 2), {"const": "leaf"}]}),
    "file system": defs(ref("dir"), dir=obj(name=text(minLength=1), entries=arr(
        {"anyOf": [ref("dir"), obj(file=STRING, size=integer(minimum=0))]},
    ))),
}  # fmt: skip

SCHEMAS: dict[str, Schema] = {**SCALARS, **LISTS, **OBJECTS, **UNIONS, **REFERENCES}

REGEXES: dict[str, str] = {
    "repeat and end": "(ab)+c",
    "word": "[a-z]+",
    "maybe empty": "[a-z]*",
    "digits": "[0-9]{3}",
    "phone": r"\+[0-9]{1,3}( [0-9]{2,4}){2,4}",
    "plate": "[A-Z]{3}-[0-9]{4}",
    "choice": "yes|no|maybe",
    "nested": "((a|b)c){2,3}d",
    "long minimum": "[xy]{50,60}",
    "hex": "0x[0-9A-F]+",
    "iso date": "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "clock": "([01][0-9]|2[0-3]):[0-5][0-9]",
    "number": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    "money": r"[0-9]+\.[0-9]{2} (CHF|EUR)",
    "quoted": '"[^"\n]*"',
    "brackets": r"\[[a-z](, [a-z])*\]",
    "tag": "<b>[^<]*</b>",
    "even": "(..)*",
    "any line": ".*",
    "any line and end": ".*END",
    "starts and ends": "A.*Z",
    "not a": "[^a]+",
    "beyond ASCII": "[éü]+ß",
    "wide": "日本?語",
    "smile": "😀{2,}!",
    "spaces": r"a\s+b",
    "escape": r"\\\.\*\?",
    "newlines": "(a\nb)+",
    "lines": "([a-z]+\n){3}",
    "email": r"[a-z]+@[a-z]+\.(com|org)",
    "semver": r"[0-9]+\.[0-9]+\.[0-9]+(-[a-z]+)?",
    "list of numbers": "[0-9]+(,[0-9]+)*",
    "csv": "([a-z]*,){3}[a-z]*",
    "ip": r"(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(\.(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})){3}",
    "roman": "M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})",
    "path": "(/[a-z0-9_]+)+",
    "identifier": "[A-Za-z_][A-Za-z0-9_]*",
    "assignment": r"[a-z]+ = [0-9]+;",
    "sql": "SELECT [a-z]+(, [a-z]+)* FROM [a-z]+( WHERE [a-z]+ = [0-9]+)?;",
    "move": "[NBRQK]?[a-h][1-8]",
    "score": "[0-9]{1,2}:[0-9]{1,2}",
    "sudoku": "[1-9]{9}",
    "yes or a reason": r"yes|no, because [a-z ]{10,}\.",
    "ends with a long word": "[a-z ]*extraordinarily",
    "three of a kind": "a{3}b{3}c{3}",
    "optional parts": "a?b?c?d?e",
    "loop with exits": "(a(b|c)*d)+e",
    "all options long": "(alpha|beta|gamma)( (alpha|beta|gamma)){4,}",
    "url": r"https?://[a-z]+(\.[a-z]+)+(/[a-z]*)*",
    "markdown heading": "#{1,6} [^\n#]+",
}

GRAMMARS: dict[str, str] = {
    "sum": 'start: term ("+" term)*\nterm: /[0-9]+/ | "(" start ")"',
    "arithmetic": (
        'start: expr\nexpr: expr ("+" | "-") product | product\n'
        'product: product ("*" | "/") atom | atom\natom: NUMBER | "(" expr ")"\nNUMBER: /[0-9]+/'
    ),
    "brackets": 'start: "(" start ")" | "[" start "]" | "x"',
    "deep first": 'start: "a" start "b" | "a" "b"',
    "greeting": 'start: ("hello" | "bye") " " NAME "!"\nNAME: /[A-Z][a-z]+/',
    "assignments": 'start: line+\nline: NAME " = " VALUE "\\n"\nNAME: /[a-z]+/\nVALUE: /[0-9]+/',
    "json in prose": 'start: "Answer: " obj "."\nobj: %json {"type": "integer", "minimum": 10}',
    "gbnf": 'root ::= item ("," item)* ";"\nitem ::= [a-z]+ "=" [0-9]+',
    "markdown-table": "markdown-table",
    "code-fence": "code-fence",
}


def random_walk(matcher: Matcher, letters: TokenTable, draw: random.Random, most: int) -> list[int]:
    """Ids that the matcher allowed and took: up to `most`, half of them of the shorter kind."""
    ids: list[int] = []
    while len(ids) < most:
        allowed = letters.ids(matcher.allowed())
        if not len(allowed):
            break
        drawn = [int(draw.choice(allowed)) for _ in range(draw.choice((1, 4)))]
        ids.append(min(drawn, key=lambda token_id: len(letters.table[token_id])))
        assert matcher.accept(ids[-1:]) == 1, "an allowed id was not taken"
    return ids


def walk_length(draw: random.Random) -> int:
    """How far a walk goes: at the start, within the first few tokens, or far in."""
    return draw.choice((0, draw.randrange(12), draw.randrange(60), draw.randrange(200)))
