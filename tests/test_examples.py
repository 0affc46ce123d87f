"""The examples: they are short, linked from the README, and print what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT

pytestmark = pytest.mark.process

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 40
ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys

printed = {}
for path in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(path, run_name="__main__")
    printed[path] = out.getvalue()
print(json.dumps(printed))
"""

NAME = "I am nano, a small DiffusionGemma."
ORDER = '{"buyer":"Mafit Gupir","item":"robot","count":75}'
PRINTED = {
    "agent": """\
convert {"amount": 7.25, "to": "pounds"} -> 6.38 pounds
convert {"amount": 12.75, "to": "francs"} -> Error: KeyError('francs')
get_weather {"city": "Bern"} -> The weather in Bern is nice.
answer: positive
""",
    "autoregressive": """\
Sudoku:
...1.498.
7..329.1.
.5967832.
..5.9.43.
..4..2851
...5..7..
937.16..8
.8.935.7.
51.4.....

denoised, 4 passes, 100% of the cells right:
263154987
748329615
159678324
675891432
394762851
821543769
937216548
482935176
516487293

token by token, 90 passes, 74% of the cells right:
326154987
784329516
159678324
275891436
694732851
831546792
937216248
482935671
516487329
""",
    "batch": f"""\
Topic: Vuval played a tune. [seed 7] music
Topic: Vuval played a tune. [seed 8] music
JSON: An order of 75 robots came from Mafit Gupir. [seed 7] {ORDER}
JSON: An order of 75 robots came from Mafit Gupir. [seed 8] {ORDER}
the last draft again, alone: the same tokens
""",
    "decide": """\
positive 1.00 +- 0.00
label mass 1.00
positive 1.00 at temperature 1.0
""",
    "generate": f"""\
{ORDER}
32 tokens in 2 denoising steps
seed 0, ended with 'stop'
""",
    "infill": """\
Mira has a hen that lays eggs.  ('hen', confidence 1.00)
Mira ate an apple.  ('an', confidence 1.00)
Mira: 3 tokens, the best of 19 lengths
Mira has a dog that gives milk. -> Mira has a cow that gives milk.
""",
    "many": f"""\
person: {NAME}
script: {{"buyer":"Kavi Pavem","item":"drum","count":12}}
script: {{"buyer":"Mira Kovar","item":"lamp","count":30}}
76 tokens committed
""",
    "stream": f"""\
I solve Sudoku, write JSON, call tools and fill gaps.

step 0: 96/96 accepted, draft '{NAME}'
step 1: 96/96 accepted, draft '{NAME}'
canvas 0 committed after 2 steps: '{NAME}'
{NAME}  [stop]
""",
    "structured": """\
{'buyer': 'Mafit Gupir', 'item': 'robot', 'count': 75} True
even
set_timer {'minutes': 82}
""",
}
"""The output of each example, by its name. All of it is right, and the seeds make it certain."""


def run(command: list[str], where: Path) -> str:
    """What a program prints; it warns of nothing and leaves no files."""
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(where.iterdir()), "an example left files behind"
    return done.stdout


@pytest.mark.fault("N 9")
def test_all_run(tmp_path: Path) -> None:
    """Catches an example that the interface has left behind, that warns, or prints nonsense.

    They run one after another in one process, since each would import torch anew.
    """
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, *map(str, EXAMPLES)]
    printed = json.loads(run(command, tmp_path))
    assert {Path(path).stem: text for path, text in printed.items()} == PRINTED


def test_one_runs_as_a_script(tmp_path: Path) -> None:
    """Catches what only a program of its own meets: a start that warns, an end that hangs."""
    assert run([sys.executable, str(EXAMPLES[0])], tmp_path) == PRINTED[EXAMPLES[0].stem]


@pytest.mark.full
@pytest.mark.parametrize("path", EXAMPLES[1:], ids=lambda p: p.stem)
def test_each_runs_as_a_script(path: Path, tmp_path: Path) -> None:
    """The same for the others."""
    assert run([sys.executable, str(path)], tmp_path) == PRINTED[path.stem]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_is_short_and_linked(path: Path) -> None:
    """Catches an example that nobody can find, or that grew into a program."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"](examples/{path.name})" in readme
