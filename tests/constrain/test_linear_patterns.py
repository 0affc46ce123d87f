"""No regular expression of the package takes more than linear steps over a user's text."""

from __future__ import annotations

import importlib
import re
from itertools import product
from pathlib import Path

import pytest

import dgemma
from dgemma.constrain import lark
from dgemma.constrain.limits import GROUPS
from dgemma.constrain.regex import pieces, portable, terminal, whole
from dgemma.errors import InvalidRequest
from tests.support.regex_steps import Use, steps, uses

OTHERS = {
    "bench/gpu.py": "names of GPUs on the command line of a measurement",
    "bench/gpu_compile.py": "what a compiler says",
    "cli/wording.py": "messages of our own errors, which quote little of a text",
    "weights/hub_download.py": "what a hub answers",
    "weights/names.py": "names of tensors",
    "weights/load.py": "names of tensors",
    "weights/schemes/matching.py": "names of modules, by a checkpoint's patterns of few repeats",
    "weights/schemes/gemma.py": "names of modules, by a checkpoint's patterns of few repeats",
    "weights/writers/compressed.py": "names of modules, by their own endings",
    "weights/writers/tensors.py": "our names of tensors",
}
"""Modules whose expressions see no user's text, and what they see."""
MADE = {
    "'|'.join(map(re.escape, names)) or '(?!)'": "names of control tokens: no repeat",
    "''.join(plain)": "a user's pattern, which is compiled and never matched",
}
"""Expressions that are made while the package runs, and why they are no danger."""
ONCE = {
    "text/calls.py": ("call", "-?", "[^"),
    "text/lenient_calls.py": ("\\s*+(?:call",),
    "text/tokenizer.py": ("<",),
    "text/tokenizer_json.py": ("(?:\\[",),
    "server/errors.py": ("(?!",),
    "server/middleware.py": ("[",),
    "server/apis/edit/sections.py": ("\\A",),
    "constrain/regex.py": ("\\(",),
    "cli/options.py": ("auto",),
    "weights/cached.py": ("([A-Za-z0-9_]", "models--"),
}
"""Beginnings of expressions that are matched once, at a text's beginning; others everywhere."""
STOPS = {
    "constrain/regex.py": ("[",),
    "constrain/lark.py": ('"', "/"),
}
"""Lexemes that end the reading of a text, for they are parts of something that is not closed."""
SIDE_BY_SIDE = {"text/lenient_calls.py": ("\\s*+(?:([",)}
"""Beginnings of expressions whose matches lie side by side: the first gap ends the reading."""

USES = [use for use in uses(Path(dgemma.__file__).parent) if use.module not in OTHERS]


def value(use: Use) -> str:
    """The expression of a use."""
    name = "dgemma." + use.module.removesuffix(".py").replace("/", ".")
    space = vars(importlib.import_module(name))
    found: str | bytes = eval(use.source, dict(space))
    return found if isinstance(found, str) else found.decode("latin-1")


def hostile(pattern: str, size: int) -> list[str]:
    """Texts of about this length from the letters of an expression: runs, pairs, ends that fail."""
    letters = dict.fromkeys(
        [*re.sub(r"\\[A-Za-z]|[\[\](){}?*+^$|.]", "", pattern)[:12], *'a <["\\{']
    )
    texts = ["".join(pair) * (size // 2) for pair in product(letters, repeat=2)]
    return texts + [letter + other * size for letter, other in product(letters, repeat=2)]


@pytest.mark.slow
@pytest.mark.fault("R C2")
@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.module} {use.source[:30]}")
def test_steps_are_linear(use: Use) -> None:
    """Catches an expression that starts again at each place, or that has two ways to repeat.

    Counted: four times the text takes at most five times the steps.
    """
    if use.source in MADE:
        return
    pattern, flags = value(use), eval(use.flags, {"re": re})
    source = pattern if use.module != "text/calls.py" else pattern.removeprefix("\\s*")
    once = source.startswith(ONCE.get(use.module, ("\0",)))
    lexer = source.startswith(SIDE_BY_SIDE.get(use.module, ("\0",)))
    how, stops = "match" if once else "lex" if lexer else "all", STOPS.get(use.module, ())
    closing = "_UNSPELT_OPEN.pattern" in use.source  # cut after the last ], see `sources._words`
    for short, long in zip(hostile(pattern, 24), hostile(pattern, 96), strict=True):
        few, many = (
            steps(pattern, flags, text[: text.rfind("]") + 1] if closing else text, how, stops)
            for text in (short, long)
        )
        assert many <= 5 * few + 50, (pattern, short[:20], few, many)


def test_exempt_modules_are_there() -> None:
    """Catches an exception that outlives its expression."""
    modules = {use.module for use in uses(Path(dgemma.__file__).parent)}
    assert modules >= OTHERS.keys() and modules >= ONCE.keys() | STOPS.keys()
    assert {use.source for use in USES} >= MADE.keys()


@pytest.mark.fault("R C2")
@pytest.mark.parametrize(
    "text", ["[", "((((", "(?:", "<|", "a", "\\", '"', '\\"', "[a]", "a|", "(a)*", "{1", "[[a]"]
)
def test_pieces_of_a_pattern_are_read_once(text: str) -> None:
    """Catches a reader of patterns that looks at each piece as often as there are others."""
    work = []
    for size in (200, 800):
        read, made = 0, pieces(text * size)
        for piece in made:
            read += len(piece)
        work.append(read)
        try:
            found = whole(portable(text * size, "here"))
            assert len(terminal(found)) < 40 * size * len(text)
        except InvalidRequest as error:
            assert "here" in str(error)
    assert work[1] <= 4 * work[0] + 4


@pytest.mark.parametrize("regex", ["(?x)a\nb", "(?ix:a b)", "(?U)a+b", "(?R)a$", "a++b", "a*+b"])
def test_what_engines_read_in_their_own_way_is_refused(regex: str) -> None:
    """Catches an answer that the library takes and Python's `re` does not."""
    with pytest.raises(InvalidRequest, match="regex: "):
        portable(regex, "regex", strict=False)
    assert portable("(?i)x(?:U|R)+?", "regex", strict=False)


def test_groups_are_bounded() -> None:
    """Catches a reader that goes down into each group, for each group around it."""
    most = GROUPS.most
    assert whole(portable("(" * most + "a" + ")" * most, "here"))
    with pytest.raises(InvalidRequest, match="groups"):
        portable("(" * (most + 1) + "a" + ")" * (most + 1), "here")


@pytest.mark.fault("R C2")
@pytest.mark.parametrize(
    "text", ['"', '"\\"', "/a", "<", "<a", "#", "start", " ", "\n", "%json", "("]
)
def test_lexemes_of_a_grammar_are_read_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a text that is not closed and is looked for again from each of its quotes."""
    work, piece = list[int](), lark._piece

    def counted(source: str, at: int) -> str:
        work[-1] += 1
        return piece(source, at)

    monkeypatch.setattr(lark, "_piece", counted)
    for size in (200, 800):
        work.append(0)
        try:
            lark.checked_lark("start: \n" + text * size, (), lambda schema: {})
        except InvalidRequest as error:
            assert "grammar" in str(error)
    assert work[1] <= 4 * work[0] + 20
