"""The documents: their Python runs, their commands and options exist, their tables are the code's.

That quoted files and links exist is checked in `test_layout.py`; here, that anchors do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from dgemma.cli.main import COMMANDS
from dgemma.params import RELEASED, SamplingParams
from dgemma.server.errors import ERRORS
from dgemma.server.settings import ServerLimits
from recipes.nano.recipe import PLAN
from tests.support import documents, field_table
from tests.support.client_environments import environment
from tests.support.live import KEY, Live, running
from tests.support.sources import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = "verification.md"
SERVING = ROOT / "docs/serving.md"
ADDRESS = "http://127.0.0.1:8000"
"""Of the server in docs/serving.md."""
BASH = ["bash", "-euo", "pipefail", "-c"]
GUESTS = {"anthropic": "anthropic", "langchain_openai": "langchain"}
"""Packages that have an environment of their own, by the folders of tests/clients."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language ("" for those without)."""
    return [block.body for block in blocks_of(page, language)]


def blocks_of(page: Path, language: str) -> list[documents.Block]:
    """The fenced blocks of one language."""
    return [block for block in documents.blocks(text_of(page)) if block.language == language]


def check_output(shown: Sequence[str | None], printed: str) -> None:
    """Each part of what a program printed is what the page shows of it, if it shows it."""
    for text, part in zip(shown, documents.parts(printed), strict=True):
        if text is not None:
            assert not documents.difference(text, part)


def options_of(command: str) -> set[str]:
    """Every option of a command, from its own parser."""
    parser = argparse.ArgumentParser()
    import_module(f"dgemma.cli.{command}").configure(parser)
    return {word for action in parser._actions for word in action.option_strings}


HELP = """
import contextlib, io, json, runpy, sys

printed = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(f"bench.{name}", run_name="__main__")
    printed[name] = out.getvalue()
print(json.dumps(printed))
"""
"""Prints the help of several benchmarks: a process for each would import torch anew."""


def options_of_programs(names: set[str]) -> dict[str, set[str]]:
    """Every option of each `python -m bench.NAME`, from its own help."""
    command = [sys.executable, "-c", HELP, *sorted(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    helps: dict[str, str] = json.loads(done.stdout)
    assert all(text.startswith("usage: ") for text in helps.values()), helps
    return {name: set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", helps[name])) for name in helps}


@pytest.mark.process
def test_benchmarks_of_the_pages_exist() -> None:
    """Catches a benchmark or an option that the program would refuse."""
    lines = [
        (page.name, name, rest)
        for page in PAGES
        for name, rest in re.findall(r"python -m bench\.([a-z]+)(?: ([^`\n]*))?", text_of(page))
    ]
    known = options_of_programs({name for _, name, _ in lines})
    for page, name, rest in lines:
        given = {word for word in shlex.split(rest) if word.startswith("-")}
        assert not given - known[name] - {"--help"}, f"{page}: {name} {rest}"
    assert len(lines) > 2


def run(command: list[str], where: Path, *, errors: bool = False, **variables: str) -> str:
    """What a program prints, its errors among it or not; it leaves no files."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=where, env=environment | variables, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + (done.stderr or "")
    assert not list(where.iterdir()), "a snippet left files behind"
    return done.stdout


@pytest.mark.fault("N 1", "N 2", "N 9")
@pytest.mark.process
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python") and p != SERVING], ids=lambda p: p.name
)
def test_python_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    """Catches a snippet that no longer fits the interface, and output that is not what it prints.

    Blocks of a page share their names.
    """
    snippets = blocks_of(page, "python")
    printed = run([sys.executable, "-c", documents.python_program(snippets)], tmp_path)
    check_output([block.shown for block in snippets], printed)


@pytest.mark.fault("N 9", "N 10")
@pytest.mark.process
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "console")], ids=lambda p: p.name)
def test_console_of_the_page_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """Catches a command that fails, and pasted output that another version wrote."""
    for console in blocks_of(page, "console"):
        printed = run([*BASH, documents.shell_program(console)], tmp_path, errors=True)
        check_output([text for _, text in documents.commands(console)], printed)


COMMAND = re.compile(r"(\.venv/bin/)?(dgemma|make|pip|python3?) ")
WRITTEN = ("docs/performance.md", "docs/gpu.md", "docs/log.md", "docs/verification.md")
"""Pages that programs write, and dated notes."""
ELSEWHERE = {"released-weights.md": "  layers ", "README.md": "$ dgemma demo"}
"""Output that another test compares: in tests/cli/test_main.py and test_demo.py."""


@pytest.mark.fault("N 9", "N 45")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if str(p.relative_to(ROOT)) not in WRITTEN], ids=lambda p: p.name
)
def test_no_output_is_pasted(page: Path) -> None:
    """Catches output that no test compares, and a command with a part that the reader must add."""
    for block in blocks_of(page, ""):
        if page.name in ELSEWHERE and block.body.startswith(ELSEWHERE[page.name]):
            continue
        for line in block.body.splitlines():
            assert COMMAND.match(f"{line} "), f"use a console block for output: {line}"
            assert not re.search(r"<[a-z ]+>", line), f"cannot be pasted: {line}"
    used = [block for block in blocks_of(page, "python") if block.shown is not None]
    assert len(blocks_of(page, "text")) == len(used), "a text block without its snippet"


@pytest.mark.fault("N 53")
def test_contributing_says_how_to_add_each_thing() -> None:
    """Catches a way to extend the project that a contributor has to learn from failing tests."""
    page = text_of(ROOT / "CONTRIBUTING.md").partition("## How to add")[2].partition("\n## ")[0]
    things = re.findall(r"^\* \*\*(?:An?|The) (.*?)\.\*\*", page, re.MULTILINE)
    wanted = ("default", "sampling field", "endpoint", "kernel", "task", "flag", "weight format",
              "key of config.json", "example", "snippet", "package")  # fmt: skip
    for one in wanted:
        assert any(one in thing for thing in things), one
    for trap in ("generation_config.json", '"slots"', "test_every_option_is_in_a_test"):
        assert trap in page


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
    source = text_of(ROOT / "recipes/nano/__main__.py")
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


# -- docs/serving.md -------------------------------------------------------------------------------


def guest_of(block: str) -> str | None:
    """The client a block needs that is not among the packages of these tests."""
    return next(
        (name for name in GUESTS if re.search(rf"^(?:import|from) {name}", block, re.M)), None
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The server that the page says how to start, at another port."""
    lines = [line for block in blocks(SERVING, "") for line in block.splitlines()]
    [line] = [line for line in lines if line.startswith("dgemma serve")]
    name, port, number, option, _ = shlex.split(line)[2:]
    assert (name, port, number, option) == ("nano", "--port", ADDRESS[-4:], "--api-key-file")
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# of the page\n{KEY}\n")
    with running(option, str(keys)) as live:
        yield live


def run_against(live: Live, command: list[str], code: str, where: Path) -> str:
    """What a snippet prints, run against the server."""
    code = code.replace(ADDRESS, live.url)
    return run([*command, code], where, KEY=KEY, ADMIN_KEY=KEY, HOME=str(where))


@pytest.mark.process
@pytest.mark.parametrize("number", range(len(blocks(SERVING, "sh"))))
def test_shell_of_the_serving_page_runs(number: int, server: Live, tmp_path: Path) -> None:
    """Catches a request on the page that the server refuses, or answers by nothing."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    code = blocks(SERVING, "sh")[number]
    said = run_against(server, BASH, code, tmp_path)
    assert len(said) > 20 * code.count("curl ")


@pytest.mark.slow
def test_python_of_the_serving_page_runs(server: Live, tmp_path: Path) -> None:
    """Catches a snippet that a client's library or the server no longer takes."""
    own = [block for block in blocks_of(SERVING, "python") if guest_of(block.body) is None]
    said = run_against(server, [sys.executable, "-c"], documents.python_program(own), tmp_path)
    check_output([block.shown for block in own], said)
    assert "step 0: " in said and "draft" in said and "final" in said


@pytest.mark.process
@pytest.mark.parametrize("guest", GUESTS)
def test_other_clients_of_the_serving_page(
    guest: str, full: bool, server: Live, tmp_path: Path
) -> None:
    """The same for clients that are installed in environments of their own."""
    [code] = [block for block in blocks(SERVING, "python") if guest_of(block) == guest]
    python = sys.executable
    if find_spec(guest) is None:
        if not full:
            pytest.skip(f"{guest} is not installed here; runs with: pytest --full")
        python = environment(GUESTS[guest])
    assert run_against(server, [python, "-c"], code, tmp_path).strip()


def rows_of(page: Path, cells: int) -> list[list[str]]:
    """The rows of a page's tables with so many cells."""
    rows = [line.strip("|").split("|") for line in text_of(page).splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in row] for row in rows if len(row) == cells]


def test_serving_page_has_every_option_with_its_default() -> None:
    """Catches an option that is new, gone, or has another default."""
    parser = argparse.ArgumentParser()
    import_module("dgemma.cli.serve").configure(parser)
    known = {action.option_strings[0]: action for action in parser._actions[1:]
             if action.option_strings}  # fmt: skip
    told: dict[str, str] = {}
    for names, defaults, _ in rows_of(SERVING, 3):
        options = re.findall(r"`(--[\w-]+)`", names)
        told |= dict(zip(options, defaults.split(", "), strict=False))
    assert set(told) == set(known)
    for name, default in told.items():
        value = known[name].default
        if value is None and hasattr(ServerLimits(), known[name].dest):
            value = getattr(ServerLimits(), known[name].dest)
        elif value is None and hasattr(ServerLimits(), known[name].dest.removeprefix("max_")):
            value = getattr(ServerLimits(), known[name].dest.removeprefix("max_"))
        assert default == ("none" if value is None else str(value)), name


def test_serving_page_has_every_status() -> None:
    """Catches a status that clients meet and read nothing about."""
    told = {int(row[0]) for row in rows_of(SERVING, 3) if row[0].isdigit()}
    assert told == {int(status) for status in ERRORS} | {403, 499}


@pytest.mark.process
def test_serving_page_names_metrics_that_exist(server: Live) -> None:
    """Catches a dashboard built on a name that is not there."""
    known = httpx.get(f"{server.url}/metrics", headers={"x-api-key": KEY}).text
    named = set(re.findall(r"`(dgemma_\w+)`", text_of(SERVING)))
    assert len(named) > 8
    assert not [name for name in named if not re.search(rf"^# TYPE {name} ", known, re.M)]


@pytest.mark.model
def test_serving_page_has_the_fields_of_the_schemas() -> None:
    """Catches a field that is new, gone, or treated otherwise than the page says."""
    page = text_of(SERVING).partition(field_table.START)[2].partition(field_table.END)[0]
    assert page == field_table.tables(), "run: python -m tests.support.field_table"
