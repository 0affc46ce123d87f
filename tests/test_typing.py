"""A user's script under `mypy --strict`: right ones pass, and every mistake is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.sources import ROOT

RIGHT = """
import dgemma
from dgemma import Event, Output, SamplingParams, EventStream
from dgemma.compose.fill import Filled, infill


def show(stream: EventStream) -> str:
    return "".join(event.text for event in stream)


with dgemma.load("nano", device="cpu") as llm:
    messages = [{"role": "user", "content": "Hello"}]
    outputs: list[Output] = [
        llm.generate("Hello", SamplingParams(seed=1), max_tokens=5),
        llm.generate([5, 6], {"seed": 1}, temperature=0.5),
        llm.chat(messages, max_tokens=5, tool_choice="auto"),
        llm.autoregress(messages, max_tokens=3),
        llm.repair("7", regex="[0-9]"),
    ]
    batches: list[list[Output]] = [
        llm.generate(["Hello", "you"], seed=1),
        llm.generate("Hello", n=2),
        llm.chat([messages, messages]),
        llm.chat(messages, n=4, best_of=8),
    ]
    stream = llm.stream(messages, seed=3)
    event: Event = next(stream)
    print(event.output, show(stream), stream.result().finish_reason == "stop")
    print(llm.fill(["a ", dgemma.Hole(max_tokens=3)], seed=1).text, llm.device)
    drafts = llm.stream_plan(infill(llm.facts, "a ", " b"))
    filled: Filled = drafts.result()
    print([place.start for one in drafts for place in one.places], filled.holes[0].text)
    print(outputs[0].usage.total_tokens, [[out.text for out in batch] for batch in batches])
"""

WRONG = """
import dgemma
from dgemma import Strem  # Module "dgemma" has no attribute "Strem"

llm = dgemma.load("nano")
out = llm.generate("Hello")
print(out.nonsense)  # "Output" has no attribute "nonsense"
print(llm.chat([{"role": "user"}]).txt)  # "Output" has no attribute "txt"
print(llm.generate("Hello", n=2).text)  # "list[Output]" has no attribute "text"
print(llm.stream("Hello").result().tokens)  # "Output" has no attribute "tokens"
llm.generate("Hello", temprature=1)  # Unexpected keyword argument "temprature"
llm.edit("Hello", max_tokens="5")  # Argument "max_tokens" to "edit" of "LLM"
llm.chat("Hello")  # Argument 1 to "chat" of "LLM" has incompatible type "str"
dgemma.lod("nano")  # Module has no attribute "lod"
dgemma.SamplingParams(max_new_tokens=3)  # Unexpected keyword argument "max_new_tokens"
dgemma.LLM("nano")  # Missing positional arguments
"""


@pytest.mark.fault("N 36")
@pytest.mark.slow
def test_a_users_script(tmp_path: Path) -> None:
    """A call that returns `Any`, where a checker passes every misspelt name."""
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    # An editable install is found by a hook that mypy does not run; of an installed package it
    # reports nothing either.
    # The package's own types are the question; those of torch alone take most of the time.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent",
               "--no-error-summary", "right.py", "wrong.py"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^(\w+)\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert {name for name, _, _ in found} == {"wrong"}, done.stdout + done.stderr
    for number, line in enumerate(WRONG.splitlines(), 1):
        errors = [message for _, at, message in found if int(at) == number]
        _, _, wanted = line.partition("  # ")
        assert bool(errors) == bool(wanted), (line, errors)
        assert not wanted or any(message.startswith(wanted) for message in errors), errors


@pytest.mark.fault("N 37")
@pytest.mark.process
def test_an_editable_install_is_a_path(tmp_path: Path) -> None:
    """setuptools installs a finder, which runs at import: type checkers do not see the package."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    (source / "dgemma").mkdir(parents=True)
    wheels.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "dgemma/__init__.py"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(wheels)], cwd=source, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = wheels.iterdir()
    with zipfile.ZipFile(wheel) as files:
        pths = {
            name: files.read(name).decode() for name in files.namelist() if name.endswith(".pth")
        }
        modules = [name for name in files.namelist() if name.endswith(".py")]
    assert [Path(text.strip()) for text in pths.values()] == [source] and not modules
