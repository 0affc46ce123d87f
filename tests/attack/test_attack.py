"""The tool that abuses a server can find fault, and its classes are what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.errors import CheckpointError, ConfigError, ModelNotFound
from dgemma.weights.files import open_checkpoint
from dgemma.weights.find import find_model
from tests.attack.__main__ import Result, main
from tests.attack.attacks import ATTACKS, MB
from tests.attack.models import FILES, start
from tests.attack.server import Held
from tests.attack.wire import Caller
from tests.support.mutated_bodies import ROUTES, mutated_body

HELD = Held(memory_mb=100.0, descriptors=8, requests=0, log_bytes=1_000)
GOOD = Result("x", 20.0, 50, 80.0, 900.0, {}, HELD, HELD, 0.5, {"200": 3, "503": 1}, True)


def test_a_server_that_withstands() -> None:
    """Catches a limit that nothing can meet."""
    assert GOOD.faults(quiet_p99_ms=100.0) == []
    slow = replace(GOOD, p99_ms=4_900.0)
    assert slow.faults(quiet_p99_ms=1_000.0) == []


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, silence_ms=251.0),
        replace(GOOD, p99_ms=1_001.0),
        replace(GOOD, p99_ms=math.inf),
        replace(GOOD, failed={"/health timeout": 1}),
        replace(GOOD, held_s=math.inf),
        replace(GOOD, after=replace(HELD, memory_mb=116.0)),
        replace(GOOD, after=replace(HELD, log_bytes=1_002_000)),
        replace(GOOD, answers={"500": 1}),
        replace(GOOD, answers={"broke: arch.gguf": 1}),
        replace(GOOD, alive=False),
    ],
)
def test_a_server_that_does_not(bad: Result) -> None:
    """Catches a limit that is not looked at."""
    assert len(bad.faults(quiet_p99_ms=100.0)) == 1


def test_bodies_are_random_and_repeat() -> None:
    """Catches a mutation that depends on anything but its number, or leaves out a route."""
    made = [mutated_body(number) for number in range(400)]
    assert made == [mutated_body(number) for number in range(400)]
    assert {path for path, _ in made} == set(ROUTES)
    assert len({data for _, data in made}) > 350


def test_every_class_can_be_prepared() -> None:
    """Catches a class that breaks before its first request, which would look like a good server."""
    for name, (about, prepare) in ATTACKS.items():
        assert about and callable(prepare(Caller(1, "key"))), name


def test_bodies_pass_the_limit_of_size() -> None:
    """Catches a large body that is refused for its bytes alone."""
    run = ATTACKS["large bodies"][1](Caller(1, "key"))
    cells = [cell.cell_contents for cell in run.args[1].__closure__ or ()]  # type: ignore[attr-defined]
    bodies = next(cell for cell in cells if isinstance(cell, list))
    assert all(MB // 2 < len(data) <= 4 * MB for _, data in bodies)


@pytest.mark.parametrize("name", FILES)
def test_every_broken_model_is_refused(tmp_path: Path, name: str) -> None:
    """One line each, without a control character, and not because the file is absent."""
    path = tmp_path / name
    path.write_bytes(FILES[name])
    with pytest.raises((CheckpointError, ConfigError, ModelNotFound)) as caught:
        open_checkpoint(find_model(path)[0])
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000 and name in said


@pytest.mark.process
def test_a_server_on_a_broken_model(tmp_path: Path) -> None:
    """Catches a class that calls everything refused, and one that takes no file for an answer."""
    path = tmp_path / "text.gguf"
    path.write_bytes(FILES["text.gguf"])
    assert start(path) == "refused"
    assert start(tmp_path / "absent") == "broke: absent"


@pytest.mark.process
@pytest.mark.model
@pytest.mark.full
def test_a_run_of_two_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run that measures or prints nothing. The verdict depends on the machine."""
    path = tmp_path / "found.json"
    main(["numbers", "hanging_up", "--seconds", "1", "--json", str(path)])
    results = {one["name"]: one for one in json.loads(path.read_text())["results"]}
    assert list(results) == ["quiet", "numbers", "hanging up"]
    assert results["numbers"]["answers"]["400"] > 0 and results["hanging up"]["answers"]["left"] > 0
    assert all(one["chats"] > 0 and one["alive"] for one in results.values())
    assert "| numbers |" in capsys.readouterr().out
