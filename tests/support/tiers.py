"""The two tiers of the suite: what `pytest --quick` leaves out, and the guard that keeps it out."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.sources import ROOT, parse

LEFT_OUT = {"model", "process", "oracle", "slow", "full", "gpu"}
"""Marks of tests that are not quick."""
TRAINED = ROOT / "dgemma" / "assets"
EVENTS = {
    "subprocess.Popen": "process", "os.fork": "process", "os.posix_spawn": "process",
    "socket.bind": "process",
}  # fmt: skip
"""What the interpreter reports of a process or a server, and the mark such a test needs."""


def is_quick(item: pytest.Item) -> bool:
    """Whether a test belongs to the quick tier."""
    return not any(mark.name in LEFT_OUT for mark in item.iter_markers())


def marks(tree: ast.Module) -> Iterator[str]:
    """Names of the marks that a module sets on all of its tests."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            for found in ast.walk(node.value):
                if isinstance(found, ast.Attribute) and ast.unparse(found.value) == "pytest.mark":
                    yield found.attr


def has_quick_tests(path: Path) -> bool:
    """Whether a module needs to be imported for the quick tier: its marks may rule it out."""
    return LEFT_OUT.isdisjoint(marks(parse(path)))


def refuse(what: str, mark: str) -> NoReturn:
    """Fail the test that does what its tier must not do."""
    pytest.fail(f"a quick test {what}: mark it with pytest.mark.{mark}", pytrace=True)


class Unimportable:
    """Comes before the finders of Python, and refuses packages that take seconds to import."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "transformers":
            refuse("imports transformers", "oracle")


def guard() -> None:
    """From now on: no process, no server, no trained model, no oracle, no training.

    The hooks are those of Python and torch, so that no test and no refactoring gets round them.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            refuse(f"causes {event}", EVENTS[event])

    from_file = torch.from_file

    def checked(filename: str, *rest: Any, **options: Any) -> torch.Tensor:
        if TRAINED in Path(filename).resolve().parents:
            refuse("reads the weights of the bundled model", "model")
        return from_file(filename, *rest, **options)

    sys.addaudithook(audit)
    sys.meta_path.insert(0, Unimportable())
    torch.from_file = checked
    register_optimizer_step_pre_hook(lambda *_: refuse("trains", "slow"))
