"""What all tests share: the options, a clean environment, measurements, the reasons of skips.

pytest           the default suite: long checks are sampled, random ones draw the same cases
pytest --full    every check at its full count with fresh random cases (`make verify`)
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
FOREIGN = ("DGEMMA_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
"""Prefixes of the variables by which a user's machine could change what a test sees."""

Number = int | float
MEASUREMENT = "measurement"


def _clean_environment() -> None:
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every check at its full count")
    parser.addoption("--verify-report", type=Path, metavar="FILE", help="write results as JSON")


def pytest_configure(config: pytest.Config) -> None:
    _clean_environment()  # some libraries read it once, when they are imported
    full = config.getoption("--full")
    # No deadline: a busy machine is not a bug. The default suite is the same on every run.
    hypothesis.settings.register_profile("sampled", deadline=None, derandomize=True)
    hypothesis.settings.register_profile("full", deadline=None, max_examples=1000, print_blob=True)
    hypothesis.settings.load_profile("full" if full else "sampled")
    if path := config.getoption("--verify-report"):
        config.pluginmanager.register(Report(path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("full") and not item.config.getoption("--full"):
        pytest.skip("runs at full count only: pytest --full")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's settings, nor what an earlier test left in the environment."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether checks run at their full count."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def count(full: bool) -> Callable[[int, int], int]:
    """`count(sampled, full)`: how many cases to run."""

    def choose(sampled: int, at_full: int) -> int:
        return at_full if full else sampled

    return choose


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Files too large or too foreign for this repository, in `shared/fixtures` beside it."""
    path = ROOT.parent / "shared" / "fixtures"
    if not path.is_dir():
        pytest.skip("no shared/fixtures beside the repository: its files are not part of it")
    return path


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(name, value, limit)`: a measured figure for docs/verification.md.

    The limit is text to be read ("<= 2e-5"); the assertion stays in the test.
    """

    def add(name: str, value: Number | str, limit: str = "") -> None:
        row = {"name": name, "value": value, "limit": limit}
        request.node.user_properties.append((MEASUREMENT, row))

    return add


class Report:
    """Collects what a run showed and writes it as JSON: counts per test, skips, measurements.

    The cases of a parametrised test count together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.skips: list[dict[str, str]] = []
        self.measurements: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.partition("[")[0]
        self.tests[test]["ms"] += round(1000 * report.duration)
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "call" or report.outcome != "passed":
            self.tests[test][outcome] += 1
        if outcome == "skipped":
            assert isinstance(report.longrepr, tuple)
            self.skips.append({"test": report.nodeid, "reason": report.longrepr[2]})
        if report.when == "teardown":
            rows: list[Any] = [row for key, row in report.user_properties if key == MEASUREMENT]
            self.measurements += [{"test": report.nodeid, **row} for row in rows]

    def pytest_sessionfinish(self) -> None:
        found = {"tests": self.tests, "skips": self.skips, "measurements": self.measurements}
        self.path.write_text(json.dumps(found, indent=1), encoding="utf-8")
