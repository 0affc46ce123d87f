"""The documents: their Python runs, their commands and options exist, their tables are the code's.

That quoted files and links exist is checked in `test_layout.py`; here, that anchors do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dgemma.cli.main import COMMANDS
from dgemma.params import RELEASED, SamplingParams
from dgemma.train.recipes.nano import PLAN
from tests.sources import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = "verification.md"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language ("" for those without)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def options_of(command: str) -> set[str]:
    """Every option of a command, from its own parser."""
    parser = argparse.ArgumentParser()
    import_module(f"dgemma.cli.{command}").configure(parser)
    return {word for action in parser._actions for word in action.option_strings}


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    """Catches a snippet that no longer fits the interface. Blocks of a page share their names."""
    code = "\n".join(blocks(page, "python"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "a snippet left files behind"


def test_traps_name_tests_that_exist() -> None:
    """Catches a trap whose test was renamed or lost: nobody would see that it is open again."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text_of(ROOT / "docs/traps.md"))
    assert len(named) > 10
    for file, name in named:
        assert f"def {name}(" in text_of(ROOT / file), f"{file}::{name} is not there"


def test_readme_lists_every_command() -> None:
    """Catches a command that is new, gone, or described in other words than `dgemma --help`."""
    rows = re.findall(r"^\| `dgemma (\w+)` \| (.*) \|$", text_of(ROOT / "README.md"), re.MULTILINE)
    assert dict(rows) == COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Catches a command line that the program would refuse."""
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text_of(page))
    wrong = []
    for line in lines:
        match = re.match(r"(?:\.venv/bin/)?dgemma (\w+)(?: |$)(.*)", line)
        if match is None or match[1] == "COMMAND":
            continue
        if match[1] not in COMMANDS:
            wrong.append(line)
            continue
        given = {word for word in shlex.split(match[2]) if word.startswith("-")}
        wrong += [f"{line}: {word}" for word in given - options_of(match[1]) - {"--help"}]
    assert not wrong
    assert "usage: " not in text_of(page), "help that is pasted goes stale; name the command"


def test_options_of_the_recipe_exist() -> None:
    """Catches an option of `make nano` that docs/training.md made up or kept too long."""
    page = text_of(ROOT / "docs/training.md")
    source = text_of(ROOT / "dgemma/train/recipes/nano.py")
    named = set(re.findall(r"(?<!\w)--[a-z][a-z-]*", page))
    assert named
    assert named <= set(re.findall(r'"(--[a-z-]+)"', source))


def test_training_page_has_the_numbers_of_the_plan() -> None:
    """Catches a number of the run that was changed in the code alone."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \|", text_of(ROOT / "docs/training.md"), re.MULTILINE
    )
    values = dataclasses.asdict(PLAN)
    assert rows
    assert {name: float(value) for name, value in rows} == {n: values[n] for n, _ in rows}


def test_api_page_lists_every_parameter() -> None:
    """Catches a sampling parameter that is new, gone, or has another released value."""
    page = text_of(ROOT / "docs/api.md").partition("## SamplingParams")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*) \|$", page, re.MULTILINE)
    names = [name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)]
    assert names == [field.name for field in dataclasses.fields(SamplingParams)]
    for cell, released in rows:
        for name, value in zip(re.findall(r"`(\w+)`", cell), released.split(", "), strict=False):
            known = getattr(RELEASED, name)
            assert known is None or json.loads(value) == known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_anchors_and_examples_exist(page: Path) -> None:
    """Catches a link to a heading or an example that has another name now."""
    wrong = [name for name in re.findall(r"`(examples/[\w./-]+)`", text_of(page))
             if not (ROOT / name).exists()]  # fmt: skip
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(page)):
        target = text_of(page.parent / file if file else page)
        heads = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
        known = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
        wrong += [] if anchor in known else [f"{file}#{anchor}"]
    assert not wrong


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != GENERATED], ids=lambda p: p.name)
def test_no_path_of_one_machine(page: Path) -> None:
    """Catches pasted output that names the home or working directory of whoever ran it."""
    assert not re.findall(r"(?<![\w.])/(?:root|home|work|tmp|Users)/", text_of(page))


def test_readme_has_the_marks_of_its_measured_parts() -> None:
    """Catches an edit that loses the place where measured output is pasted."""
    page = text_of(ROOT / "README.md")
    for name in ("demo", "evaluate"):
        assert page.count(f"<!-- {name}:start -->") == page.count(f"<!-- {name}:end -->") == 1
