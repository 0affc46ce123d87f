"""The file of a calibration: limits beside the temperatures of decisions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dgemma.compose.calibration import FILE, FORMAT, Calibration
from dgemma.errors import ConfigError, InvalidRequest


def test_limits_come_back(tmp_path: Path) -> None:
    """Catches a limit that is lost, and an older file that is no longer read."""
    made = Calibration({"choice": 2.0}, 8, -0.25)
    made.save(tmp_path / FILE)
    assert Calibration.load(tmp_path / FILE) == made == Calibration.of(None, tmp_path)
    assert made.limits == (8, -0.25)
    (tmp_path / "old.json").write_text(json.dumps({"format": FORMAT, "temperatures": {"a": 2}}))
    old = Calibration.of(tmp_path / "old.json", tmp_path)
    assert old == Calibration({"a": 2}) and old.limits == (None, None)
    old.save(tmp_path / "same.json")
    assert "limits" not in (tmp_path / "same.json").read_text()
    assert Calibration.of(None, tmp_path / "empty") == Calibration()


@pytest.mark.parametrize(("limits", "said"), [
    ([], "limits must be an object"),
    ({"restart": 8}, "did you mean 'restart_after'"),
    ({"x" * 1000: 8}, "unknown limit 'x"),
    ({"restart_after": 0}, "from 1 to 10000, got 0"),
    ({"restart_after": 10**400}, "from 1 to 10000"),
    ({"restart_after": True}, "got True"),
    ({"restart_after": 8.0}, "got 8.0"),
    ({"restart_after": "auto"}, "got 'auto'"),
    ({"least_logprob": 0.1}, "from -1000 to 0, got 0.1"),
    ({"least_logprob": float("nan")}, "got nan"),
    ({"least_logprob": float("-inf")}, "got -inf"),
    ({"least_logprob": [1] * 1000}, "from -1000 to 0"),
])  # fmt: skip
def test_hostile_limits(limits: Any, said: str, tmp_path: Path) -> None:
    """Catches a stranger's file whose number reaches the engine, or fills the terminal."""
    path = tmp_path / FILE
    path.write_text(json.dumps({"format": FORMAT, "temperatures": {}, "limits": limits}))
    with pytest.raises(ConfigError, match=said) as caught:
        Calibration.of(None, tmp_path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))
    with pytest.raises(InvalidRequest, match=said):
        Calibration.of(path, tmp_path)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """Catches a pipe that is waited for, an endless file, and a link to nothing that is no file."""
    for name in ("pipe", "large", "lost"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / FILE)
    (tmp_path / "large" / FILE).write_bytes(b" " * (1 << 21))
    (tmp_path / "lost" / FILE).symlink_to("nowhere")
    for name, said in (("pipe", "a pipe"), ("large", "more than"), ("lost", "No such file")):
        with pytest.raises(ConfigError, match=f"{said}.*remove it"):
            Calibration.of(None, tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The remedy is not to remove it."""
    with pytest.raises(InvalidRequest, match="x.json is not there; `dgemma calibrate` writes it"):
        Calibration.of(tmp_path / "x.json", tmp_path)
