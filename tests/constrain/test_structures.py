"""Markdown by name: what is written has the form, and no text of the user becomes grammar."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from dgemma.constrain.completion import BYTE_ORDER
from dgemma.constrain.matcher import Grammar
from dgemma.constrain.precompiled import Precompiled, precompile
from dgemma.constrain.sources import make_grammar
from dgemma.constrain.structures import MOST_FREE_COLUMNS
from dgemma.errors import InvalidRequest
from dgemma.matcher import run_search
from dgemma.text.parse import MarkerIds
from dgemma.text.tokenizer import Tokenizer
from tests.support.markdown import STRUCTURES, marked_walk

Count = Callable[[int, int], int]


def of(structure: str, tokenizer: Tokenizer) -> Grammar:
    """A structure's grammar."""
    return make_grammar("structure", structure, tokenizer, MarkerIds.of(tokenizer).ends)


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole text has the structure."""
    matcher, ids = grammar.matcher(), tokenizer.encode(text)
    return matcher.accept(ids) == len(ids) and matcher.accepting


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_finished_text_has_the_form(name: str, nano: Tokenizer, count: Count) -> None:
    """Catches a row with a cell too few, a fence that stays open, a number that is left out.

    The walks like the marks of Markdown; each is ended by its closing.
    """
    grammar, judge = of(name, nano), STRUCTURES[name]
    for k in range(count(8, 200)):
        draw, matcher = random.Random(f"{name} {k}"), grammar.matcher()
        ids = marked_walk(matcher, nano, draw, draw.randrange(60))
        closing = run_search(matcher.completion(512))
        assert closing is not None, nano.decode(ids)
        judge(nano.decode(ids + closing))


LINES = ("| a | b |", "| --- | --- |")
TABLE = "\n".join(LINES)
ROW = "\n| 1 | 2 |"
FORMS: list[tuple[str, list[str], list[str]]] = [
    ("table:a,b", [TABLE + ROW, TABLE + 3 * ROW, TABLE + "\n| | x |", TABLE + "\n| \\| | \\\\ |"],
     [TABLE, TABLE + "\n", TABLE + ROW + "\n", TABLE + "\n| 1 |", TABLE + "\n| 1 | 2 | 3 |",
      "| a | c |\n| --- | --- |" + ROW, TABLE + "\n| 1 | 2\\|", TABLE + "\n| \\\\| | 2 |",
      TABLE + "\n| \u2028 | 2 |"]),
    ("table:a,b;rows=2-3", [TABLE + 2 * ROW, TABLE + 3 * ROW], [TABLE + ROW, TABLE + 4 * ROW]),
    ("table:a,b;rows=2", [TABLE + 2 * ROW], [TABLE + ROW, TABLE + 3 * ROW]),
    ("table", [TABLE + ROW, "| a |\n| :---: |\n| |", "|" + " x |" * MOST_FREE_COLUMNS + "\n|"
               + " --- |" * MOST_FREE_COLUMNS + "\n|" + " |" * MOST_FREE_COLUMNS],
     ["| a |\n| --- | --- |" + ROW, TABLE + "\n| 1 |", "| |\n| --- |\n| 1 |", TABLE]),
    ("table;rows=2", [TABLE + 2 * ROW], [TABLE + ROW, TABLE + 3 * ROW]),
    ("fence:python", ["```python\n```", "```python\nx = 1\n\n\ty `` ```\n    ```\n``\n```"],
     ["```\n```", "```py\n```", "```python\nx```", "```python\nx\n", "```python\n   ```\n```",
      "```python\n```\n", "```python\n```x\n```"]),
    ("fence", ["```\na\n```", "```c++\n```"], ["```a b\n```", "``\n``", "```\n````"]),
    ("list", ["- a", "- a b\n- `c`", "- ``` "[:4] + "x"], ["", "a", "- a\n", "- ", "- a\n* b",
     "- ```", "- ~~~x", "- --", "- - -", "- a\n\n- b", "-  a", "- a "]),
    ("list:2", ["- a\n- b"], ["- a", "- a\n- b\n- c"]),
    ("list:1", ["- a"], ["- a\n- b"]),
    ("numbered", ["1. a", "1. a\n2. b\n3. c"], ["2. a", "1. a\n1. b", "1. a\n3. b", "1. ```"]),
    ("numbered:1-2", ["1. a", "1. a\n2. b"], ["1. a\n2. b\n3. c", "1. a\n2. "]),
    ("document", ["a", "# a\n\n- b\n\n```py\nx\n```\n\n| a |\n", "```\n```", "a ` b `` c"],
     ["", "a\n```", "```\n", "a ```", "- ```\n", "~~~", "<!--", "   <pre>", "```a`b\n```"]),
]  # fmt: skip
"""Structure, texts of it, and texts that are nearly of it."""


@pytest.mark.parametrize(("structure", "good", "bad"), FORMS, ids=[one for one, *_ in FORMS])
def test_forms(structure: str, good: list[str], bad: list[str], nano: Tokenizer) -> None:
    """Catches a form that is too narrow for its own texts, or too wide."""
    grammar = of(structure, nano)
    for text in good:
        assert takes(grammar, nano, text), text
    for text in bad:
        assert not takes(grammar, nano, text), text


HOSTILE = [
    '"', '""', "'", "\\", "\\\\n", '\\"', "/", "//x", "/*", "#", '" | /.*/ | "', ".*", "[a-z]{3}(",
    "%import", "%json {}", "%llguidance {}", "<|turn>", "<turn|>", "start: x", "{{", "$", "^a$",
    "é", "😀", "\u00a0x\u200dy", "name=", "a;b", "a,b", "a:b", "`", "```", "--- ", "\\|"[:1] + " x",
]  # fmt: skip


def test_hostile_names(nano: Tokenizer) -> None:
    """Catches a name that turns into grammar, and one that is not written as it is."""
    for name in (one for one in HOSTILE if "|" not in one):
        told = re.sub(r"[\\,;]", r"\\\g<0>", name)
        head = f"| {name.strip()} | z |\n| --- | --- |"
        grammar = of(f"table:{told},z;rows=1", nano)
        assert nano.decode(grammar.matcher().forced()) in head + "\n| ", name
        assert bytes(BYTE_ORDER[k] for k in grammar.text).decode() == head + "\n| | |"
        assert not takes(grammar, nano, "| x | z |\n| --- | --- |\n| | |"), name
    for name in (one for one in HOSTILE if "`" not in one):
        text = bytes(BYTE_ORDER[k] for k in of(f"fence:{name}", nano).text).decode()
        assert text == f"```{name.strip()}\n```"


def test_all_hostile_names_at_once(nano: Tokenizer) -> None:
    """Catches names that are cut at each other's marks."""
    names = [name for name in HOSTILE if "|" not in name][:32]
    told = ",".join(re.sub(r"[\\,;]", r"\\\g<0>", name) for name in names)
    text = bytes(BYTE_ORDER[k] for k in of(f"table:{told}", nano).text).decode()
    assert text.split("\n")[0] == "".join(f"| {one.strip()} " for one in names) + "|"


@pytest.mark.parametrize(("structure", "said"), [
    ("tabel:a", "'tabel' is not known (did you mean 'table'?); use table, fence, list"),
    ("Table", "did you mean 'table'"), ("x", "'x' is not known; use"), ("", "not empty"),
    ("table:", "empty"), ("table:a,,b", "empty"), ("table:a|b", "'|' in a column's name"),
    ("table:a\nb", "'\\n' in a column's name"), ("table:a\x00", "leave it out"),
    ("table:a\u2028b", "leave it out"), ("table:\ud800", "surrogate"),
    ("table:a;rows", "write 5, or 2-5"), ("table:a;row=3", "write rows=COUNT once"),
    ("table:a;rows=2;rows=3", "once"), ("table:a;rows=0", "write 5, or 2-5"),
    ("table:a;rows=3-2", "write 5, or 2-5"), ("table;rows=x", "as the number of rows"),
    ("list:", "as the number of items"), ("list:-1", "number of items"), ("list:²", "number of"),
    ("list;5", "write list:5"), ("numbered:2-", "number of items"), ("list:9999999999", "number"),
    ("fence:a`b", "'`' in a language"), ("fence:", "empty"), ("fence;x", "fence:LANGUAGE"),
    ("document:x", "nothing after it"), ("table:" + "a" * 10**6, "at most 200"),
])  # fmt: skip
def test_refusals(structure: str, said: str, nano: Tokenizer) -> None:
    """Catches a form that is quietly taken for another."""
    with pytest.raises(InvalidRequest, match="^structure") as caught:
        of(structure, nano)
    assert said in str(caught.value) and len(str(caught.value)) < 500


def test_closings(nano: Tokenizer) -> None:
    """Catches an end that is longer or poorer than it must be."""
    for structure, begun, end in [
        ("table:a,b", TABLE + "\n| x", " | |"), ("table:a,b", TABLE + "\n| x y | z", " |"),
        ("table:a,b;rows=2", TABLE + "\n| 1 | 2", " |\n| | |"), ("table", "| a | b", " |\n| --- | "
         "--- |\n| | |"), ("fence:x", "```x\n", "```"), ("fence:x", "```x\ny", "\n```"),
        ("list:2", "- a", "\n- …"), ("numbered:3", "1. a\n2", ". …\n3. …"),
        ("document", "a\n```\nb", "\n```"), ("document", "a\n```b", "\n```"), ("document", "", "…"),
    ]:  # fmt: skip
        matcher = of(structure, nano).matcher()
        ids = nano.encode(begun)
        assert matcher.accept(ids) == len(ids)
        closing = run_search(matcher.completion(64))
        assert closing is not None and nano.decode(closing) == end, (structure, begun)


def test_compiled_aside(nano: Tokenizer) -> None:
    """Catches an end that is lost on the way from the process that compiles."""
    ends = sorted(MarkerIds.of(nano).ends)
    made = Precompiled.unpacked(precompile("structure", "list:3", nano, ends).packed())
    grammar = Grammar("structure", made.source, nano, ends, text=made.text)
    assert nano.decode(run_search(grammar.matcher().completion(64)) or []) == "- …\n- …\n- …"


def test_the_largest(nano: Tokenizer) -> None:
    """Catches a structure within the bounds for which no text is found, or no end half-way."""
    for structure, most in [
        ("table:" + ",".join("a" * 32) + ";rows=62", 6000), ("table:" + ",".join(["é" * 200] * 32),
         20_000), ("numbered:200", 2000), ("list:200", 2000),
    ]:  # fmt: skip
        matcher = of(structure, nano).matcher()
        assert matcher.accept(matcher.forced()[:9])
        closing = run_search(matcher.completion(most))
        assert closing is not None and matcher.accept(closing) == len(closing)
        assert matcher.accepting


@pytest.mark.slow
def test_real_vocabulary(gemma: Tokenizer, count: Count) -> None:
    """Catches tokens that hold a bar, a line's end and the next mark at once."""
    for name in random.Random(5).sample(sorted(STRUCTURES), count(2, len(STRUCTURES))):
        grammar = of(name, gemma)
        for k in range(count(1, 20)):
            draw, matcher = random.Random(f"{name} {k}"), grammar.matcher()
            ids = marked_walk(matcher, gemma, draw, draw.randrange(40))
            closing = run_search(matcher.completion(512))
            assert closing is not None, gemma.decode(ids)
            STRUCTURES[name](gemma.decode(ids + closing))
