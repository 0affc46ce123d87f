"""Reads the package's sources as syntax trees, for the rules in test_layout.py.

Knows what an import statement names, where it stands and what it would load. Knows no rule.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """An import statement: what it names, and where it stands."""

    target: str
    line: int
    deferred: bool  # inside a function
    guarded: bool  # inside a `try` that handles ImportError
    typing: bool  # under `if TYPE_CHECKING`: never runs


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        """The room it belongs to; "dgemma" for the package's own `__init__`."""
        return part_of(self.name)

    def at(self, line: int) -> str:
        """A place for people: `path:line`."""
        return f"{self.path.relative_to(ROOT)}:{line}"


def part_of(name: str) -> str:
    """dgemma.engine.request -> engine; dgemma -> dgemma."""
    return name.split(".")[1] if "." in name else name


def python_files(*folders: str) -> list[Path]:
    """The Python files of these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def code_lines(path: Path) -> int:
    """Lines of a file that are neither blank, nor comments, nor in a docstring."""
    said = set[int]()
    for node in ast.walk(parse(path)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            said.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    texts = [line.strip() for number, line in lines if number not in said]
    return sum(bool(text) and not text.startswith("#") for text in texts)


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in python_files("dgemma"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, parse(path))
    return found


def handles_import_error(node: ast.Try) -> bool:
    """Whether an `except` of this `try` names ImportError or ModuleNotFoundError."""
    names = {n.id for h in node.handlers if h.type for n in ast.walk(h.type) if type(n) is ast.Name}
    return bool(names & {"ImportError", "ModuleNotFoundError"})


def targets(node: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
    """What a statement imports; `from package import name` is resolved to a module if it is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        here = module.name.split(".")
        depth = node.level - (module.path.stem == "__init__")
        base = ".".join([*here[: len(here) - depth], *filter(None, [base])])
    longer = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in modules() else base for name in longer]


@cache
def imports(module: Module) -> tuple[Import, ...]:
    """Every import of a module, also those inside functions and under TYPE_CHECKING."""

    def walk(node: ast.AST, deferred: bool, guarded: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node, module):
                yield Import(target, node.lineno, deferred, guarded, typing)
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        guarded |= isinstance(node, ast.Try) and handles_import_error(node)
        typing |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred, guarded, typing)

    return tuple(walk(module.tree, False, False, False))


def reached(name: str) -> set[str]:
    """All that importing a module loads: ours (with parent packages) and the first foreign ones."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        new = waiting.pop()
        if new in seen:
            continue
        seen.add(new)
        if new in modules():
            found = [i for i in imports(modules()[new]) if not (i.deferred or i.typing)]
            waiting += [i.target for i in found]
            waiting += [new.rpartition(".")[0]] if "." in new else []
    return seen


def ours(target: str) -> bool:
    """Whether a dotted name is in this package."""
    return target.split(".")[0] == "dgemma"


@cache
def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]


IMPORTED_AS = {"markdown_it_py": "markdown_it"}
"""Packages whose modules have another name."""


def declared(extras: bool) -> set[str]:
    """Import names of the core dependencies, or of what the extras for users add to them."""
    table = project()["optional-dependencies"] if extras else {"core": project()["dependencies"]}
    lines = [line for extra, lines in table.items() if extra != "dev" for line in lines]
    names = (canonicalize_name(Requirement(line).name).replace("-", "_") for line in lines)
    return {IMPORTED_AS.get(name, name) for name in names}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions, methods and inner functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
