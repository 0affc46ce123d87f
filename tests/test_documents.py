"""The check of documents, on a page made up for it; and the names that the real pages use."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.documents import (
    blocks,
    commands,
    difference,
    parts,
    python_program,
    shell_program,
)
from tests.support.sources import ROOT

PAGE = """
Text.
```python
for k in range(3):
    print(k, "  ")
```
```text
0
1
2
```
```python
print("not shown")
```

```text
beside it
```
```python
print(k)
```
```text
3
```
```console
$ printf 'a\\nb\\n'
a
...
$ echo one \\
>   two
one two
$ true
```
"""


def test_a_text_block_belongs_to_the_snippet_directly_above() -> None:
    """Catches a text that is taken for the output of a snippet far above, or of none."""
    assert blocks("no block") == []
    found = blocks(PAGE)
    assert [block.language for block in found] == [
        "python", "text", "python", "text", "python", "text", "console"
    ]  # fmt: skip
    assert [block.shown for block in found if block.language == "python"] == [
        "0\n1\n2\n", None, "3\n"
    ]  # fmt: skip


@pytest.mark.process
def test_each_snippet_is_compared_with_its_own_text() -> None:
    """Catches output that is compared with another snippet's, or a wrong text that passes."""
    snippets = [block for block in blocks(PAGE) if block.language == "python"]
    printed = parts(
        subprocess.check_output([sys.executable, "-c", python_program(snippets)], text=True)
    )
    first, second, third = zip(snippets, printed, strict=True)
    assert first[0].shown and difference(first[0].shown, first[1]) == ""
    assert second[1] == "not shown\n"
    assert third[0].shown and difference(third[0].shown, third[1]).splitlines()[-2:] == ["-3", "+2"]


@pytest.mark.process
def test_commands_are_compared_one_by_one() -> None:
    """Catches a command that is cut at its first line, and output of the next one in its place."""
    console = blocks(PAGE)[-1]
    assert commands(console) == [
        (r"printf 'a\nb\n'", "a\n..."), ("echo one \\\n  two", "one two"), ("true", "")
    ]  # fmt: skip
    printed = parts(subprocess.check_output(["bash", "-c", shell_program(console)], text=True))
    assert printed == ["a\nb\n", "one two\n", ""]
    shown = [text for _, text in commands(console)]
    assert not any(difference(a, b) for a, b in zip(shown, printed, strict=True))


@pytest.mark.parametrize(("shown", "printed", "same"), [
    ("a\nb\n", "a  \nb\n\n", True),
    ("a\n...\nd\n", "a\nb\nc\nd\n", True),
    ("a\n...\nd\n", "a\nd\n", True),
    ("...\nd\n", "b\nc\n", False),
    ("a\n...\n", "b\nc\n", False),
    ("a.c\n", "abc\n", False),
    ("a\n", "a\nb\n", False),
    ("a ...\n", "a b\n", False),
    ("", "a\n", False),
])  # fmt: skip
def test_what_counts_as_the_same(shown: str, printed: str, same: bool) -> None:
    """Catches a text that passes whatever is printed, and blanks that count."""
    assert (difference(shown, printed) == "") is same


def test_documents_name_what_exists() -> None:
    """Catches a document that sends the reader to a file or a target that has moved."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    missing = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        quoted = [
            ROOT / path
            for path in re.findall(r"`((?:dgemma|tests|docs|bench|recipes)/[\w./-]+)`", text)
        ]
        links = [page.parent / path for path in re.findall(r"\]\(([^)#:]+)\)", text)]
        missing += [f"{page.name}: {p}" for p in quoted + links if not p.exists()]
        missing += [
            f"{page.name}: make {t}" for t in set(re.findall(r"`make ([a-z-]+)", text)) - known
        ]
    assert not missing, "\n".join(missing)
