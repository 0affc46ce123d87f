"""Formats of strings: whatever is accepted, strict readers take."""

from __future__ import annotations

import datetime
import ipaddress
import random
import urllib.parse
import uuid
from collections.abc import Callable

import jsonschema_rs
import pytest

from dgemma.constrain.completion import BYTE_ORDER
from dgemma.constrain.formats import FORMATS
from dgemma.constrain.matcher import Grammar
from dgemma.constrain.sources import make_grammar
from dgemma.matcher import run_search
from dgemma.request_parts import ToolUse
from dgemma.text.calls import format_call
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import ToolCall

Count = Callable[[int, int], int]
READERS: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "uri": lambda text: urllib.parse.urlsplit(text).port,
}


def of_format(name: str, tokenizer: Tokenizer) -> Grammar:
    """The grammar of JSON texts of a format."""
    schema = {"type": "string", "format": name}
    return make_grammar("json_schema", schema, tokenizer, MarkerIds.of(tokenizer).ends)


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole text is in the language."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text, control=True)
    return matcher.accept(ids) == len(ids) and matcher.accepting


def walks(grammar: Grammar, name: str, count: int) -> list[str]:
    """Texts of random walks, byte by byte, ended as an answer without room is."""
    texts = []
    draw = random.Random(name)
    for _ in range(count):
        automaton, text = grammar.automaton(), b""
        for _ in range(draw.randrange(40)):
            options = automaton.options()
            symbols = [k for k in range(len(BYTE_ORDER)) if options >> k & 1]
            marks = [k for k in symbols if chr(BYTE_ORDER[k]) in ':.@-/?#%[]TPZ+02369"']
            step = draw.choice(marks if marks and draw.random() < 0.6 else symbols or [0])
            if not symbols or (BYTE_ORDER[step] == ord('"') and text):
                break
            automaton.push([step])
            text += bytes((BYTE_ORDER[step],))
        matcher = grammar.matcher()
        ids = [grammar.table.byte_ids[byte] for byte in text]
        assert matcher.accept(ids) == len(ids)
        rest = run_search(matcher.completion(300))
        assert rest is not None, text
        texts.append(grammar.tokenizer.decode(ids + rest))
    return texts


@pytest.mark.fault("P B3", "P B4", "P B6")
@pytest.mark.parametrize("name", FORMATS)
def test_strict_readers_take_every_text(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches the day 0000-01-01, the 29th of February of 2023, second 60, a port of 99999.

    The search for an ending goes to the edges of a format: these are the texts that it finds.
    """
    validator = jsonschema_rs.Draft202012Validator(
        {"type": "string", "format": name}, validate_formats=True
    )
    for text in walks(of_format(name, nano), name, count(40, 2000)):
        value = text[1:-1]
        assert validator.is_valid(value), value
        if name in READERS:
            READERS[name](value)


@pytest.mark.fault("P B3", "P B4", "P B6")
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29 2000-02-29 0004-02-29 0001-01-01 9999-12-31 1900-02-28",
         "2023-02-29 1900-02-29 2100-02-29 0000-01-01 0000-02-29 2024-04-31 2024-13-01 2024-1-1"),
        ("time", "11:22:59Z 00:00:00.123456+23:59",
         "11:22:60Z 23:59:60Z 24:00:00Z 11:22:33 11:22:33.Z 11:22:33+24:00"),
        ("date-time", "2024-02-29T23:59:59Z", "2023-02-29T00:00:00Z 2024-02-29T23:59:60Z"),
        ("uri", "http://a.b:65535/ a:b http://[::1]:8080/x?y#z", "http://a.b:65536/ a"),
        ("hostname", "a a.b-c.d xn-a", "-a a- a..b a--b"),
        ("email", "a.b+c@d.org", "a@b a@b.1 .a@b.org a..b@c.org a@-b.org"),
        ("ipv4", "0.0.0.0 255.255.255.255", "256.0.0.0 01.0.0.0 1.1.1"),
        ("ipv6", ":: ::1 1:2:3:4:5:6:7:8 1:2:3:4:5:6:7::", "1::2::3 1:2:3:4:5:6:7 12345::"),
        ("duration", "P1Y2M3DT4H5M6S P1W PT1S", "P PT P1Y3D P1WT1H P1S"),
        ("uuid", "123e4567-E89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000"),
    ],
)  # fmt: skip
def test_examples(name: str, good: str, bad: str, nano: Tokenizer) -> None:
    """Catches a format that refuses what it is for, in an answer or in a call."""
    in_json = of_format(name, nano)
    tool = {"function": {"name": "f", "parameters": {
        "type": "object", "properties": {"v": {"type": "string", "format": name}}}}}  # fmt: skip
    in_calls = make_grammar("tools", ToolUse([tool]), nano, MarkerIds.of(nano).ends)
    for text in (*good.split(), *bad.split()):
        call = format_call(ToolCall(name="f", arguments={"v": text}))
        assert takes(in_json, nano, f'"{text}"') == (text in good.split()), text
        assert takes(in_calls, nano, f"<|tool_call>{call}<tool_call|>") == (text in good.split())


def test_lengths(nano: Tokenizer) -> None:
    """Catches names that are longer than any reader takes."""
    label = "a" * 63
    assert takes(of_format("hostname", nano), nano, f'"{".".join([label] * 3)}.{"a" * 61}"')
    assert not takes(of_format("hostname", nano), nano, f'"{".".join([label] * 3)}.{"a" * 62}"')
    assert not takes(of_format("hostname", nano), nano, f'"{label}a"')
    assert takes(of_format("email", nano), nano, f'"{"a" * 64}@b.org"')
    assert not takes(of_format("email", nano), nano, f'"{"a" * 65}@b.org"')
