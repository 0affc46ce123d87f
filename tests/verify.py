"""`make verify`: the suite at full count, and what it printed as docs/verification.md.

Knows how to run pytest and how to lay out tables. Knows nothing about what is measured: a test
says that itself, through the `record` fixture.
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
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
DOCUMENT = "docs/verification.md"
OUTCOMES = ("passed", "failed", "skipped", "xfailed")
FINISHED = (0, 1)
"""Exit codes of pytest after a whole run: all passed, some failed."""


def run_pytest(arguments: Sequence[str], report: Path) -> tuple[int, str]:
    """Run the suite at full count, its output shown as it comes: exit code and closing line."""
    command = [sys.executable, "-m", "pytest", "--full", f"--verify-report={report}", *arguments]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last.strip("= ")


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


def document(report: dict[str, Any], closing: str, command: str) -> str:
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
    files = [
        (name, *(row.get(outcome, 0) for outcome in OUTCOMES), f"{row['ms'] / 1000:.1f}")
        for name, row in sorted(report["files"].items())
    ]
    measured = [(m["name"], m["value"], m["limit"], m["test"]) for m in report["measurements"]]
    skips = Counter(
        (s["test"].partition("::")[0], s["reason"].removeprefix("Skipped: "))
        for s in report["skips"]
    )
    lines = ["# Verification", "", "Written by `make verify` from what pytest printed.", ""]
    lines += table(("what", "this run"), facts)
    lines += ["## Measurements", "", *table(("measurement", "value", "limit", "test"), measured)]
    lines += ["## Tests per file", "", *table(("file", *OUTCOMES, "seconds"), files)]
    if skips:
        rows = [(file, number, reason) for (file, reason), number in sorted(skips.items())]
        lines += ["## Not run here", "", *table(("file", "tests", "reason"), rows)]
    return "\n".join(lines)


def main() -> int:
    """Run, write, and exit as pytest did."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="other arguments go to pytest")
    parser.add_argument("--output", type=Path, default=ROOT / DOCUMENT)
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        code, closing = run_pytest(arguments, path)
        if code not in FINISHED:
            print(f"pytest did not finish (exit code {code}); {DOCUMENT} is as before")
            return code
        report = json.loads(path.read_text(encoding="utf-8"))
    command = " ".join(["pytest --full", *arguments])
    options.output.write_text(document(report, closing, command), encoding="utf-8")
    print(f"wrote {options.output}")
    return code


if __name__ == "__main__":
    sys.exit(main())
