"""Errors name options of the command line, not what only a Python program can write."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

from dgemma.cli.wording import in_options
from tests.support.commands import Ran
from tests.support.sources import modules, parse

pytestmark = pytest.mark.fault("N 33")

PYTHON = re.compile(r"\b\w+=\w|\w\(\)|\bRequest\.|\bllm\.\w")
"""A keyword, a call, or an attribute of the library."""
ONLY_IN_PYTHON = {
    "put a Hole() among the parts",  # `dgemma infill` refuses a text without a mark itself
    "give llm.facts, not", "such as infill(llm.facts, ...)",  # plans
    "write rows=COUNT once",  # of --structure
    "write a setting as name=value,name=value",  # of `dgemma evaluate --against`
    "needs a chat (Request.chat)",  # tool calls, which no command takes
    'use dgemma.load("nano")', 'dgemma.load("nano")',
    "it is an argument of generate()",  # of keywords in Python; the parser refuses such options
    "{'role': ...",
    "pass overwrite=True",  # of save(), which no command calls
}  # fmt: skip
"""Messages that no command can cause, or that mean the command line already."""
RAISING = {"refused", "bad_field"}


def options() -> dict[str, str]:
    """Those of `dgemma generate`."""
    parser = argparse.ArgumentParser()
    import_module("dgemma.cli.generate").configure(parser)
    return {a.dest: a.option_strings[0] for a in parser._actions if a.option_strings}


def messages() -> Iterator[tuple[str, str]]:
    """The place and the literal text of every message of an error in the library."""
    for module in modules().values():
        if module.part in ("cli", "server", "bench"):
            continue
        for node in ast.walk(parse(module.path)):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Raise) or name in RAISING:
                parts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                yield module.at(node.lineno), "".join(p for p in parts if isinstance(p, str))


def test_every_message_of_the_library() -> None:
    """A new message whose remedy is a keyword, a call or a class that a shell does not have."""
    known, found, wrong = options(), 0, []
    for place, text in messages():
        found += 1
        said = in_options(text, known)
        if PYTHON.search(said) and not any(part in said for part in ONLY_IN_PYTHON):
            wrong.append(f"{place}: {said}")
    assert found > 200
    assert not wrong, "add the command line's own words to dgemma/cli/wording.py:\n" + "\n".join(
        wrong
    )


@pytest.mark.model
@pytest.mark.parametrize(("words", "said"), [
    ("--temperature -1 x", "--temperature must be"),
    ("--t-min 3 x", "--t-min 3.0 must not be above --t-max"),
    ("--logit-bias 5=2 --allowed-token-ids 9999 x", "--allowed-token-ids: id 9999"),
    ("--raw --thinking-budget 3 x", "--thinking-budget needs the chat; leave out --raw"),
    ("--canvas-length 500 x", "--canvas-length 500 is above"),
    ("--regex a --grammar b x", "--regex and --grammar cannot be combined"),
    ("--stable-prefix --regex a x", "--stable-prefix and --regex cannot be combined"),
    ("--min-tokens 20 --max-tokens 3 x", "--min-tokens 20 must not be above --max-tokens 3"),
    ("a\udcffb", "the prompt has a lone surrogate"),
])  # fmt: skip
def test_refusals_name_options(words: str, said: str, run: Callable[..., Ran]) -> None:
    """`max_tokens`, where the reader has typed `--max-tokens`."""
    code, _, err = run("generate", *words.split(" "))
    assert code == 2 and err.startswith(f"dgemma: error: {said}"), err


def test_what_is_no_field_stays() -> None:
    """A key of a file, a path or a word of the sentence that becomes an option."""
    known = {"max_tokens": "--max-tokens", "model": "--model", "stop": "--stop", "seed": "--seed"}
    for text in (
        "config.json: unknown key 'max_tokens'", "runs/max_tokens/x: no such file",
        "take a smaller model", "nano: stop the server first", "a_file.json: max_tokens.x",
    ):  # fmt: skip
        assert in_options(text, known) == text
    assert in_options("give max_tokens.", known) == "give --max-tokens."
