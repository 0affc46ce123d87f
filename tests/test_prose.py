"""The words of documents, help texts and error messages: plain English, no dialect of our own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from dgemma.cli.main import COMMANDS, Parser
from tests.support.sources import ROOT, modules, parse

WRONG = {
    r"\btold\b(?! apart| from)": "say, report or emit",
    r"\bparted\b": "separated",
    r"\banew\b": "again, or re-",
    r"\btwins?\b": "the field's word",
    r'"room"|\brooms\b(?! on)': "package",
    r"(?<!here )(?<!There )\bis no (?!longer|more|matter|single)\w+": "is not a",
    r"^those that\b": "commands (fields, requests, ...) that",
    r"\bwhatever the\b": "even if",
    r"\bmay come again\b": "repeatable",
    r"\bIn silence\b": "while idle",
    r"\bbehind the\b": "after the",
    r"\bone sees\b": "you see",
    r"\bfor one,": "for example,",
    r"\bof one's own\b": "own",
}
"""Expressions that readers stumbled over -> what to write."""
NOT_OURS = {"log.md"}
"""Dated notes, which stay as they were."""


def pages() -> Iterator[tuple[str, str]]:
    """Lines of the documents, without code."""
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]:
        if path.name in NOT_OURS:
            continue
        text = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"),
                      path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)  # fmt: skip
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.name}:{number}", re.sub(r"`[^`]*`", "", line)


def helps() -> Iterator[tuple[str, str]]:
    """The help of every command."""
    for command in COMMANDS:
        parser = Parser(prog=f"dgemma {command}")
        import_module(f"dgemma.cli.{command}").configure(parser)
        yield f"dgemma {command} --help", " ".join(parser.format_help().split())


def errors() -> Iterator[tuple[str, str]]:
    """The literal parts of error messages."""
    for module in modules().values():
        for node in ast.walk(parse(module.path)):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Raise) or name in ("refused", "bad_field", "say"):
                parts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                yield module.at(node.lineno), "".join(p for p in parts if isinstance(p, str))


@pytest.mark.fault("N English")
@pytest.mark.parametrize("texts", [pages, helps, errors])
def test_plain_words(texts: Iterator[tuple[str, str]]) -> None:
    """Sentences that a reader has to decode: German word order, words that only we use."""
    wrong = []
    for place, text in texts():  # type: ignore[operator]
        for pattern, instead in WRONG.items():
            if found := re.search(pattern, text, re.IGNORECASE):
                wrong.append(f"{place}: {found[0]!r}; write: {instead}")
    assert not wrong, "\n" + "\n".join(wrong)
