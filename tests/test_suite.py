"""The shape of the suite itself: where its helpers are, and what its quick tier may not do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiers
from tests.support.report import skips_by_reason
from tests.support.sources import ROOT, parse, python_files

NO_HELPERS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)


def test_no_test_imports_a_test() -> None:
    """Catches a helper in a test module: whoever imports it breaks when those tests change."""
    wrong = []
    for path in python_files("tests"):
        for node in ast.walk(parse(path)):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            elif not isinstance(node, ast.Import):
                continue
            if any(re.search(r"^tests\.(.*\.)?(test_\w+|conftest)\b", name) for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, f"move the shared part to tests/support: {wrong}"


def is_hook_or_fixture(node: ast.stmt) -> bool:
    """Whether pytest itself finds this function of a conftest."""
    if not isinstance(node, ast.FunctionDef):
        return False
    return node.name.startswith("pytest_") or "pytest.fixture" in map(
        lambda decorator: ast.unparse(decorator).partition("(")[0], node.decorator_list
    )


def test_conftests_hold_fixtures() -> None:
    """Catches a helper in a conftest, which no test can import."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files("tests")
        if path.name == "conftest.py"
        for node in parse(path).body
        if not isinstance(node, NO_HELPERS) and not is_hook_or_fixture(node)
    ]
    assert not wrong, f"move helpers to tests/support: {wrong}"


def test_marks_of_a_module_are_read_without_importing_it(tmp_path: Path) -> None:
    """Catches a module that --quick imports though all of its tests are left out, or never does."""
    path = tmp_path / "test_x.py"
    for marks, quick in (
        ("pytest.mark.model", False),
        ("[pytest.mark.skipif(True, reason='x'), pytest.mark.process]", False),
        ("pytest.mark.skipif(True, reason='x')", True),
    ):
        path.write_text(f"import pytest\n\npytestmark = {marks}\n")
        parse.cache_clear()
        assert tiers.has_quick_tests(path) is quick


FORBIDDEN = """
import socket, subprocess
import dgemma, torch

def test_process(): subprocess.run(["true"])
def test_server(): socket.socket().bind(("127.0.0.1", 0))
def test_model(): dgemma.load("nano", device="cpu")
def test_oracle(): import transformers
def test_training(): torch.optim.SGD([torch.ones(1, requires_grad=True)]).step()
"""


@pytest.mark.process
def test_quick_tests_are_guarded(tmp_path: Path) -> None:
    """Catches a guard that lets a process, a server, a trained model or training through."""
    path = tmp_path / "test_forbidden.py"
    path.write_text(FORBIDDEN)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--quick", "--tb=no", "-rf"]
    command += ["-p", "no:cacheprovider", "-c", "pyproject.toml", str(path)]
    wide = {**os.environ, "COLUMNS": "400"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True)
    refused = re.findall(r"^FAILED .*::test_(\w+) - .* pytest\.mark\.(\w+)$", done.stdout, re.M)
    assert refused == [
        ("process", "process"), ("server", "process"), ("model", "model"), ("oracle", "oracle"),
        ("training", "slow"),
    ], done.stdout  # fmt: skip


@pytest.mark.fault("N 50")
def test_skips_are_counted_by_reason() -> None:
    """Hundreds of skipped tests, and not one word why."""
    reason = "runs at full count only: pytest --full"
    reports = [
        pytest.TestReport(f"a.py::{i}", ("a.py", 1, "a"), {}, "skipped", ("a.py", 1, why), "setup")
        for i, why in enumerate([f"Skipped: {reason}"] * 2 + ["Skipped: no CUDA device"])
    ]

    lines = [line.split(maxsplit=1) for line in skips_by_reason(reports)]
    assert sorted(lines) == [["1", "no CUDA device"], ["2", reason]]
