"""`make verify`: every acceptance line at full count, and the outcome as docs/verification.md.

Knows which tests and commands stand for which line, how to run them, and how to lay out tables.
Knows nothing about what is measured: a test says that itself, through the `record` fixture.

    make verify                                    everything
    python -m tests.verify --no-clone [PYTEST ...] without the commands in a clean clone
    python -m tests.verify --no-attack             without the abuse of a server
    python -m tests.verify --no-witnesses          without a download of other models' weights

A line holds when all its tests passed. One whose tests were not there, or not run, does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.support import witness
from tests.support.acceptance import ACCEPTANCE

ROOT = Path(__file__).parents[1]
DOCUMENT = "docs/verification.md"
IN_A_CLONE = ("make demo", "make test", "make wheel")
"""Acceptance line 9: run in a clean clone, with no environment, an empty HOME, no pip cache."""

OUTCOMES = ("passed", "failed", "skipped", "xfailed")
FINISHED = (0, 1)
"""Exit codes of pytest after a whole run: all passed, some failed."""


_SERVING = ("tests/server", "tests/clients")
SHARES = (_SERVING, tuple(f"--ignore={path}" for path in _SERVING))
"""Arguments of the runs that together are the suite; side by side, for a server mostly waits."""

Run = tuple[int, str, dict[str, Any]]
"""Exit code of pytest, its closing line, its report (empty where it did not finish)."""


def run_pytest(arguments: Sequence[str]) -> Run:
    """Run the suite, or a share, at full count; its output is shown as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "--full", f"--verify-report={path}", *arguments]
        last = ""
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        done = process.returncode in FINISHED
        report = json.loads(path.read_text(encoding="utf-8")) if done else {}
        return process.returncode, last.strip("= "), report


def witnesses(folder: Path) -> list[str]:
    """Download weights of other models into a folder; the arguments by which pytest finds them."""
    try:
        witness.fetch(folder)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"no witnesses, so their tests are left out: {error}", flush=True)
        return []
    return [f"--witnesses={folder}"]


def together(runs: Sequence[Run]) -> Run:
    """Several runs as one: the worst exit code, all closing lines, all that was found."""
    report: dict[str, Any] = {"tests": {}, "measurements": [], "skips": []}
    for _, _, part in runs:
        report["tests"] |= part.get("tests", {})
        for name in ("measurements", "skips"):
            report[name] += part.get(name, [])
    return max(code for code, _, _ in runs), "; ".join(closing for _, closing, _ in runs), report


def commit() -> str:
    """The commit that was tested, and whether the files differed from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", ".", f":!{DOCUMENT}")
    return (git("rev-parse", "HEAD") or "none yet") + (" with uncommitted changes" * bool(changed))


def machine() -> str:
    """Cores, memory and accelerator."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{platform.system()} {platform.machine()}", f"{cores} cores"]
    if hasattr(os, "sysconf"):
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{memory_bytes / 2**30:.1f} GiB of memory")
    found = torch.cuda.is_available()
    return ", ".join([*parts, torch.cuda.get_device_name() if found else "no CUDA device"])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; cells are shown on one line and without paths of this machine."""

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        text = text.replace(str(ROOT), ".").replace(str(ROOT.parent), "..")
        return " ".join(text.replace("|", r"\|").split())

    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell(value) for value in line) + " |" for line in lines] + [""]


def in_a_clone() -> list[tuple[str, int, float]]:
    """Each command of `IN_A_CLONE` with its exit code and its seconds."""
    done = []
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder) / "home", Path(folder) / "clone"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        clean = {"PATH": os.defpath, "HOME": str(home), "PIP_NO_CACHE_DIR": "1"}
        for command in IN_A_CLONE:
            started = time.perf_counter()
            words = [*command.split(), f"PYTHON={Path(sys.executable).resolve()}"]
            code = subprocess.run(words, cwd=clone, env=clean).returncode
            done.append((command, code, time.perf_counter() - started))
    return done


def attacked() -> tuple[int, str]:
    """Exit code of `make attack` and its tables."""
    command = [sys.executable, "-m", "tests.attack"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def acceptance(tests: dict[str, dict[str, int]]) -> list[tuple[str, int, int, int, int, str]]:
    """For each line: tests, their cases passed, failed and skipped, and the verdict."""
    rows = []
    for line, names in ACCEPTANCE.items():
        counts = Counter[str]()
        found, missing = set[str](), []
        for name in names:
            here = {test for test in tests if test == name or test.startswith(f"{name}::")}
            found |= here
            if not here:
                missing.append(name)
        for test in found:
            counts.update(tests[test])
        if counts["failed"]:
            verdict = "fails"
        elif missing or not counts["passed"]:
            verdict = f"not run: {', '.join(missing)}" if missing else "not run"
        else:
            verdict = "holds" if not counts["skipped"] else "holds as far as run"
        ran = (counts["passed"], counts["failed"], counts["skipped"])
        rows.append((line, len(found), *ran, verdict))
    return rows


def per_file(tests: dict[str, dict[str, int]]) -> list[tuple[object, ...]]:
    """File, cases by outcome, seconds."""
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for test, row in tests.items():
        files[test.partition("::")[0]].update(row)
    return [
        (name, *(row[outcome] for outcome in OUTCOMES), f"{row['ms'] / 1000:.1f}")
        for name, row in sorted(files.items())
    ]


def measured(report: dict[str, Any]) -> list[tuple[str, object, str, str]]:
    """Name, value, limit, test; the cases of a test that measure one thing are one row."""
    groups: defaultdict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for row in report["measurements"]:
        groups[row["name"], row["limit"], row["test"].partition("[")[0]].append(row["value"])
    rows: list[tuple[str, object, str, str]] = []
    for (name, limit, test), values in groups.items():
        rows.append((name, values[0] if len(values) == 1 else spread(values), limit, test))
    return rows


def spread(values: Sequence[Any]) -> str:
    """Several values in a few words: what numbers lie between, or how often each text came."""
    if all(isinstance(value, int | float) for value in values):
        return f"{min(values):.3g} to {max(values):.3g}, {len(values)} cases"
    counts = Counter(str(value) for value in values)
    return ", ".join(f"{value} ({count} cases)" for value, count in counts.items())


def document(
    report: dict[str, Any], closing: str, command: str,
    cloned: list[tuple[str, int, float]] | None, attack: tuple[int, str] | None,
) -> str:  # fmt: skip
    """The text of docs/verification.md."""
    software = [f"Python {platform.python_version()}"]
    software += [f"{name} {version(name)}" for name in ("torch", "transformers", "numpy")]
    facts = [
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("commit", commit()),
        ("machine", machine()),
        ("software", ", ".join(software)),
        ("command", f"`{command}`"),
        ("result", closing),
    ]
    skips = Counter((s["test"].partition("::")[0], s["reason"]) for s in report["skips"])
    lines = ["# Verification", "", "Written by `make verify` from what it ran.", ""]
    lines += table(("what", "this run"), facts)
    head = ("line", "tests", "cases passed", "failed", "skipped", "verdict")
    lines += ["## Acceptance", "", *table(head, acceptance(report["tests"]))]
    lines += ["Line 9, in a clean clone of the commit, `env -i`, empty HOME, no pip cache:", ""]
    if cloned is None:
        lines += ["Not run (`--no-clone`).", ""]
    else:
        rows = [(f"`{name}`", code, f"{seconds:.0f}") for name, code, seconds in cloned]
        lines += table(("command", "exit code", "seconds"), rows)
    lines += [
        "## Measurements",
        "",
        *table(("measurement", "value", "limit", "test"), measured(report)),
    ]
    lines += [
        "## Cases per file",
        "",
        *table(("file", *OUTCOMES, "seconds"), per_file(report["tests"])),
    ]
    if attack is not None:
        lines += ["## Attacks", "", f"`make attack`, exit code {attack[0]}:", "", attack[1]]
    if skips:
        rows = [(file, number, reason) for (file, reason), number in sorted(skips.items())]
        lines += ["## Not run here", "", *table(("file", "cases", "reason"), rows)]
    return "\n".join(lines)


def main() -> int:
    """Run, write; 0 when every line holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="other arguments go to pytest", allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=ROOT / DOCUMENT)
    parser.add_argument("--no-clone", action="store_true", help="leave out acceptance line 9")
    parser.add_argument("--no-attack", action="store_true", help="leave out `make attack`")
    parser.add_argument("--no-witnesses", action="store_true", help="leave out their 350 MB")
    options, arguments = parser.parse_known_args()
    shares = [arguments] if arguments else SHARES
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(shares)) as pool:
        found = [] if options.no_witnesses else witnesses(Path(folder))
        runs = pool.map(run_pytest, [[*found, *share] for share in shares])
        code, closing, report = together(list(runs))
    if code not in FINISHED:
        print(f"pytest did not finish (exit code {code}); {DOCUMENT} is as before")
        return code
    attack = None if options.no_attack else attacked()
    cloned = None if options.no_clone else in_a_clone()
    command = " ".join(["pytest --full", *arguments])
    options.output.write_text(document(report, closing, command, cloned, attack), encoding="utf-8")
    print(f"wrote {options.output}")
    rows = acceptance(report["tests"])
    open_lines = [f"{row[0]}: {row[-1]}" for row in rows if not row[-1].startswith("holds")]
    open_lines += [f"attack: exit code {attack[0]}"] if attack and attack[0] else []
    open_lines += [f"9 {name}: exit code {code}" for name, code, _ in cloned or () if code]
    print("\n".join(open_lines) or "every acceptance line that was run holds")
    return 1 if code or open_lines else 0


if __name__ == "__main__":
    sys.exit(main())
