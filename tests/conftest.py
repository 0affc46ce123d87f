"""What all tests share: the options, a clean environment, measurements, the reasons of skips.

pytest --quick   unit tests alone: no process, no server, no trained model, no training
pytest           the default suite: long checks are sampled, random ones draw the same cases
pytest --full    every check at its full count with fresh random cases (`make verify`)
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests.support import tiers
from tests.support.report import MEASUREMENT, Report, skips_by_reason

ROOT = Path(__file__).parents[1]
FOREIGN = ("DGEMMA_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
"""Prefixes of the variables by which a user's machine could change what a test sees."""
KEPT = {"DGEMMA_CHROMIUM"}
"""Variables that are meant for the tests."""

Number = int | float


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run the unit tests alone")
    parser.addoption("--full", action="store_true", help="run every check at its full count")
    parser.addoption("--verify-report", type=Path, metavar="FILE", help="write results as JSON")
    parser.addoption("--witnesses", type=Path, metavar="DIR", help="see tests/support/witness.py")


def pytest_configure(config: pytest.Config) -> None:
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
        del os.environ[name]  # now: some libraries read it once, when they are imported
    # For processes that tests start: one thread, and this checkout wherever they run.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Compiled once: the tests themselves take half as long to import, and so does each process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    tier = next((tier for tier in ("quick", "full") if config.getoption(tier)), "sampled")
    # No deadline: a busy machine is not a bug. The default suite is the same on every run.
    hypothesis.settings.register_profile("sampled", deadline=None, derandomize=True)
    hypothesis.settings.register_profile("full", deadline=None, max_examples=1000, print_blob=True)
    hypothesis.settings.register_profile(
        "quick", deadline=None, derandomize=True, max_examples=20, database=None
    )
    hypothesis.settings.load_profile(tier)
    # Of two processes none shall wait for the other's last file: see pytest_collection_modifyitems.
    config.option.loadscopereorder = False
    if path := config.getoption("--verify-report"):
        config.pluginmanager.register(Report(path))


@pytest.hookimpl(trylast=True)  # xdist itself starts processes before
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if config.getoption("--quick") and runs_tests:
        tiers.guard()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return None if tiers.has_quick_tests(collection_path) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[item for item in items if not tiers.is_quick(item)])
        items[:] = filter(tiers.is_quick, items)
    # Long files come first: those of quick tests alone fill what is left of the time.
    long = {item.path for item in items if not tiers.is_quick(item)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage needs to walk through it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := skips_by_reason(terminalreporter.getreports("skipped")):
        terminalreporter.section("skipped, by reason")
        terminalreporter.write("\n".join(lines) + "\n")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("full") and not item.config.getoption("--full"):
        pytest.skip("runs at full count only: pytest --full")
    # Tensors are small: more threads only wait for each other. Set before each test, so that none
    # inherits what another has set.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's settings, nor what an earlier test left in the environment."""
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
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


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(name, value, limit)`: a measured figure for docs/verification.md.

    The limit is text to be read ("<= 2e-5"); the assertion stays in the test.
    """

    def add(name: str, value: Number | str, limit: str = "") -> None:
        row = {"name": name, "value": value, "limit": limit}
        request.node.user_properties.append((MEASUREMENT, row))

    return add
