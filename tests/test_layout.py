"""The shape of the repository, read from its syntax trees: who imports whom, sizes, names.

Nothing of ours is imported to learn this. To change a rule, change the table here and
docs/architecture.md in the same commit.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.sources import (
    ROOT,
    Import,
    Module,
    code_lines,
    declared,
    functions,
    imports,
    modules,
    ours,
    parse,
    part_of,
    project,
    python_files,
    reached,
)

# -- the rules as data ---------------------------------------------------------------------------

OUTSIDE = ("bench", "recipes")
"""Programs of the checkout that the wheel leaves out. They import the package, never each other."""
CHECKED = ("dgemma", *OUTSIDE, "tests", "examples")  # folders whose files have a limit

VALUES = {"params", "request_parts", "types", "errors"}
BASE = VALUES | {"device"}
PLAIN = VALUES | {"constrain", "events", "files", "frontend", "text"}
JOINED = {"engine", "compose", "diffusion", "weights", "quant", "text", "constrain", "frontend"}
TRAINING = {"model", "weights", "quant", "diffusion", "text", "tasks"} | BASE
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(("answer_parts", "errors", "files", "matcher"), set[str]()),
    **dict.fromkeys(("byte_sizes", "device", "param_rules"), {"errors"}),
    "params": {"errors", "param_rules"},
    "request_parts": {"errors", "params", "param_rules"},
    "types": {"answer_parts", "request_parts", "params", "errors"},
    "interfaces": {"matcher", "request_parts", "types"},
    "events": {"types"},
    "text": {"files", "interfaces"} | VALUES,
    "constrain": {"matcher", "text"} | VALUES,
    "frontend": {"constrain", "interfaces", "matcher", "param_rules", "text"} | VALUES,
    "tasks": {"text", "types", "errors"},
    "kernels": BASE,
    "model": {"kernels"} | BASE,
    "diffusion": {"kernels", "matcher"} | BASE,
    "weights": {"byte_sizes", "files", "model", "quant"} | BASE,
    "quant": {"model", "kernels"} | BASE,
    "loading": {"byte_sizes", "frontend", "model", "weights", "quant", "text"} | BASE,
    "engine": {"events", "interfaces", "matcher", "model", "kernels", "diffusion"} | BASE,
    "compose": PLAIN,
    "server": {"compose", "param_rules"} | PLAIN,
    "llm": JOINED | {"events", "loading", "model.config", "model.transformer"} | BASE,
    "train": {"files", "loading", "model", "tasks", "text"} | BASE,
    "evaluate": TRAINING | {"llm", "compose"},
    "bench": TRAINING | {"llm", "loading", "evaluate", "kernels"},
    "cli": {"byte_sizes", "dgemma", "files", "llm", "train", "evaluate", "bench", "server"}
    | {"loading"}
    | JOINED
    | TRAINING,  # fmt: skip
    "dgemma": {"llm", "compose", "events"} | VALUES,  # dgemma/__init__.py: the public names
    "__main__": {"cli"},
}
"""Part -> what it may import; a name with a dot opens one module of a part."""

MAY_DEFER = {"cli", "dgemma", "__main__"}
"""Parts that may import inside functions; elsewhere that is for optional extras alone."""

NO_TORCH = ("answer_parts", "params", "param_rules", "types", "errors", "files", "matcher",
            "request_parts", "interfaces", "events", "text", "constrain", "frontend", "tasks",
            "compose", "server", "weights.find", "byte_sizes",
            *("engine." + name for name in (
                "counters", "deadlines", "owners", "page_allocator", "pages", "places", "plan",
                "request", "scheduler", "searches", "sequence")))  # fmt: skip
TORCH = {"torch", "triton", "transformers"}

FILE_LINES, FUNCTION_LINES = 400, 60
COUNTED = ("dgemma", "bench", "recipes")
TOO_LONG: dict[str, int] = {}
"""Exceptions, each with its size: "path" for a file, "path:function" for a function."""

VAGUE = {"util", "utils", "common", "helper", "helpers", "misc"}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_NAMES = {"torch.load", "torch.save", "trust_remote_code"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}

UNPINNED = {"triton"}
"""torch's CUDA builds name the very version they need, so another pin could not be installed."""

BUNDLED, BUNDLED_BYTES = "dgemma/assets/nano/", 16_000_000

WHOLE = {"server"}
"""Rooms that need an extra as a whole: imported plainly within them, deferred from outside."""

# -- imports -------------------------------------------------------------------------------------


def test_imports_go_down_only() -> None:
    """Catches a room that reaches up or sideways: the first step to cycles and lazy plasters."""
    wrong = []
    for module in modules().values():
        assert module.part in MAY_IMPORT, f"{module.path} is in no room of the import table"
        allowed = MAY_IMPORT[module.part] | {module.part}
        for found in filter(lambda found: ours(found.target), imports(module)):
            two = ".".join(found.target.split(".")[1:3])
            if part_of(found.target) not in allowed and two not in allowed:
                wrong.append(f"{module.at(found.line)} may not import {found.target}")
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    """Catches two modules of one room that need each other, also for types or in a function."""
    graph = {
        name: {found.target for found in imports(module) if ours(found.target)} - {name}
        for name, module in modules().items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= set(modules())


def test_deferred_imports_are_for_extras() -> None:
    """Catches an import hidden in a function to dodge a cycle, and an extra nobody checks for."""
    extras, wrong = declared(extras=True), []
    for module in filter(lambda module: module.part not in MAY_DEFER, modules().values()):
        deferred = [found for found in imports(module) if found.deferred]
        needs = {found: extras & {name.split(".")[0] for name in reached(found.target)}
                 for found in deferred}  # fmt: skip
        guarded = {extra for found in deferred if found.guarded for extra in needs[found]}
        for found in deferred:
            if not needs[found] & guarded:
                wrong.append(f"{module.at(found.line)} defers the import of {found.target}")
        if "import_module(" in ast.unparse(module.tree):
            wrong.append(f"{module.path.relative_to(ROOT)} imports by a computed name")
    assert not wrong, "\n".join(wrong)


def within(module: Module, found: Import) -> bool:
    """Whether an import stays in a room that needs an extra as a whole."""
    return module.part in WHOLE and module.part == part_of(found.target)


def test_extras_stay_optional() -> None:
    """Catches a package nobody declared, and an extra that a plain install would miss at import."""
    core, extras, wrong = declared(extras=False), declared(extras=True), []
    direct = {
        name
        for name, module in modules().items()
        if any(f.target.split(".")[0] in extras and not f.deferred for f in imports(module))
    }
    for module in modules().values():
        for found in imports(module):
            top = found.target.split(".")[0]
            known = core | extras | {"dgemma"} | set(sys.stdlib_module_names)
            if top not in known:
                wrong.append(f"{module.at(found.line)}: {top} is not in pyproject.toml")
            elif module.name in direct or within(module, found):
                continue  # without the extra it is not imported either
            elif found.target in direct and not found.deferred:
                wrong.append(f"{module.at(found.line)}: {found.target} needs an extra; defer it")
    assert not wrong, "\n".join(wrong)


def outside() -> list[Module]:
    """The modules of `OUTSIDE`."""
    found = []
    for path in python_files(*OUTSIDE):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found.append(Module(name.removesuffix(".__init__"), path, parse(path)))
    return found


def test_the_wheel_stands_alone() -> None:
    """Catches a wheel with a program in it that is not for users, or a program it cannot run."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert settings["setuptools"]["packages"]["find"]["include"] == ["dgemma*"]
    # Else a type checker does not find the package of an editable install.
    assert settings["setuptools"]["package-dir"] == {"": "."}
    assert set(settings["mypy"]["packages"]) == {"dgemma", *OUTSIDE}
    known = declared(extras=False) | declared(extras=True) | set(sys.stdlib_module_names)
    wrong = []
    for module in outside():
        allowed = known | {"dgemma", module.name.split(".")[0]}
        for found in imports(module):
            if found.target.split(".")[0] not in allowed:
                wrong.append(f"{module.at(found.line)} may not import {found.target}")
    for module in modules().values():
        for found in imports(module):
            if found.target.split(".")[0] in OUTSIDE:
                wrong.append(f"{module.at(found.line)}: {found.target} is not in the wheel")
    assert not wrong, "\n".join(wrong)


def test_torch_free_packages() -> None:
    """Catches bookkeeping that drags in torch: slow to import, slow to test, no use to a client."""
    wrong = []
    for name in modules():
        if name.removeprefix("dgemma.").startswith(NO_TORCH):
            loads = {target for target in reached(name) if target.split(".")[0] in TORCH}
            wrong += [f"{name} loads {target}" for target in loads]
    assert not wrong, "\n".join(wrong)


@pytest.mark.process
def test_importing_dgemma_does_not_import_torch() -> None:
    """Catches what no syntax tree shows: a third package that imports torch by itself."""
    code = "import sys, dgemma, dgemma.types, dgemma.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_public_names() -> None:
    """Catches a name that is offered but not there, or there but not offered; a lost error."""
    import dgemma

    assert sorted(set(dgemma.__all__)) == sorted(dgemma.__all__)
    submodules = {name.split(".")[1] for name in modules() if "." in name}
    shown = {name for name in dir(dgemma) if not name.startswith("_")} - submodules
    assert shown == {name for name in dgemma.__all__ if not name.startswith("_")}
    errors = {n.name for n in parse(ROOT / "dgemma/errors.py").body if isinstance(n, ast.ClassDef)}
    assert {"load", "save", "LLM", "SamplingParams"} | errors <= set(dgemma.__all__)
    for name in dgemma.__all__:
        assert getattr(dgemma, name) is not None
    walk = ast.walk(parse(ROOT / "dgemma/__init__.py"))
    typed = {n.name for node in walk if isinstance(node, ast.ImportFrom) for n in node.names}
    assert set(dgemma.__all__) <= typed, "a name that type checkers do not see"
    with pytest.raises(AttributeError):
        _ = dgemma.no_such_name


# -- sizes and names -----------------------------------------------------------------------------


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    first = node.body[0]
    said = ast.get_docstring(node, clean=False) is not None
    assert node.end_lineno is not None and first.end_lineno is not None
    documented = first.end_lineno - first.lineno + 1 if said else 0
    return node.end_lineno - node.lineno + 1 - documented


def test_sizes() -> None:
    """Catches the hub file that grows without a moment of decision, and a stale exception."""
    sizes = {}
    for path in python_files(*CHECKED):
        name = path.relative_to(ROOT).as_posix()
        sizes[name] = (len(path.read_text(encoding="utf-8").splitlines()), FILE_LINES)
        for node in functions(parse(path)):
            sizes[f"{name}:{node.name}"] = (length(node), FUNCTION_LINES)
    over = {name: lines for name, (lines, limit) in sizes.items() if lines > limit}
    assert over == TOO_LONG


def test_code_lines_are_counted(
    record: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a file that cannot be read; growth is for people to judge, so the sum is printed."""
    counts = {folder: sum(map(code_lines, python_files(folder))) for folder in COUNTED}
    assert counts["dgemma"] > 0
    record("code lines", sum(counts.values()))
    with capsys.disabled():
        print(f"\n{sum(counts.values()):,} code lines:", counts)


def test_no_vague_files() -> None:
    """Catches the drawer that everything ends in, because its name fits everything."""
    files = python_files(*CHECKED)
    assert not [path for path in files if VAGUE & set(path.with_suffix("").parts)]


def test_every_folder_is_a_package() -> None:
    """Catches a room without `__init__.py`: found in the checkout, missing from the wheel."""
    folders = {path.parent for path in python_files("dgemma", *OUTSIDE)}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_module_says_what_it_is() -> None:
    """Catches a module whose job the next reader has to guess."""
    every = [*modules().values(), *outside()]
    assert not [m.name for m in every if not ast.get_docstring(m.tree)]


# -- safety --------------------------------------------------------------------------------------


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines that could run code out of a data file."""
    for node in ast.walk(tree):
        found: set[str] = set()
        if isinstance(node, ast.Import):
            found = UNSAFE_MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found = (UNSAFE_MODULES & {(node.module or "").split(".")[0]}) | (UNSAFE_NAMES & names)
        elif isinstance(node, ast.Attribute):
            found = UNSAFE_NAMES & {ast.unparse(node)}
        elif isinstance(node, ast.keyword):
            found = UNSAFE_NAMES & {node.arg or ""}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = UNSAFE_NAMES & {node.value}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found = UNSAFE_BUILTINS & {node.func.id}
        yield from ((getattr(node, "lineno", 0), name) for name in found)


def test_no_code_from_data() -> None:
    """Catches pickle and its kin: a model file must never be able to run anything."""
    every = [*modules().values(), *outside()]
    wrong = [f"{m.at(line)} {name}" for m in every for line, name in unsafe(m.tree)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.process
def test_no_binaries_but_the_bundled_model() -> None:
    """Catches a blob in the history, where it stays for ever, and a model too big to bundle."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    files = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in paths if p.is_file()}
    bundled = [data for name, data in files.items() if name.startswith(BUNDLED)]
    assert sum(map(len, bundled)) < BUNDLED_BYTES
    assert not [name for name, d in files.items() if b"\0" in d and not name.startswith(BUNDLED)]


# -- tests and pins ------------------------------------------------------------------------------


def asserts(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a line of a test can fail it: an assert, a checked subprocess, a helper that can."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            name = ast.unparse(inner.func)
            last = name.split(".")[-1]
            checked = any(ast.unparse(word) == "check=True" for word in inner.keywords)
            if name in helpers or last.startswith("assert_") or name in RAISING or checked:
                return True
    return False


RAISING = {"pytest.raises", "pytest.warns", "pytest.fail"}


def test_every_test_asserts() -> None:
    """Catches a test that only runs code, or prints: it is green whatever happens."""
    silent = []
    for path in python_files("tests"):
        found = list(functions(parse(path)))
        helpers: set[str] = set()
        for _ in range(3):  # helpers of helpers of helpers
            helpers |= {f.name for f in found if asserts(f, helpers)}
        tests = [f for f in found if f.name.startswith("test")]
        silent += [f"{path.name}:{f.lineno} {f.name}" for f in tests if f.name not in helpers]
    assert not silent, "\n".join(silent)


def test_every_dependency_is_pinned() -> None:
    """Catches a dependency that `make` would install in an untested version, or from elsewhere."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in filter(lambda line: line and not line.startswith("#"), lines):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"not an exact version of a public release: {line!r}"
        pins[canonicalize_name(match[1])] = match[2]
    extras = project()["optional-dependencies"].values()
    wanted = [Requirement(line) for group in [project()["dependencies"], *extras] for line in group]
    for need in filter(lambda need: need.name not in ("dgemma", *UNPINNED), wanted):
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), str(need)


# -- documents -----------------------------------------------------------------------------------


def test_architecture_page_has_this_import_table() -> None:
    """Catches a rule changed in one place only: the page a newcomer reads must be the rule."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.partition("| part | may import |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [[set(re.findall(r"`([^`]+)`", cell)) for cell in row.split("|")[1:3]]
            for row in section.splitlines()]  # fmt: skip
    assert {part: allowed for names, allowed in rows for part in names} == MAY_IMPORT
