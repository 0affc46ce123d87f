"""`make verify`: every acceptance line at full count, and the outcome as docs/verification.md.

Knows which tests and commands stand for which line, how to run them, and how to lay out tables.
Knows nothing about what is measured: a test says that itself, through the `record` fixture.

    make verify                                    everything
    python tests/verify.py --no-clone [PYTEST ...] without the commands in a clean clone

A line holds when all its tests passed. One whose tests were not there, or not run, does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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

ROOT = Path(__file__).parents[1]
DOCUMENT = "docs/verification.md"
TRAPS = re.findall(r"tests/\w+/test_\w+\.py::test_\w+", (ROOT / "docs/traps.md").read_text())
MAIN = "tests/cli/test_main.py"
ACCEPTANCE: dict[str, tuple[str, ...]] = {
    "1 parity of the network": ("tests/model/test_parity.py", "tests/model/test_window.py"),
    "2 parity of whole generations": (
        "tests/diffusion/test_parity.py",
        "tests/diffusion/test_parity_nano.py",
    ),
    "3 traps, see docs/traps.md": tuple(TRAPS),
    "4 same seed, same tokens": ("tests/engine/test_same_tokens.py",),
    "5 sizes, names and files of 26B": (
        f"{MAIN}::test_info_of_the_released_sizes",
        "tests/weights/test_names.py",
        "tests/weights/test_full_size.py",
    ),
    "6 vocabulary of Gemma 4": (
        "tests/text/test_tokenizer.py::test_published_vectors",
        "tests/text/test_tokenizer.py::test_round_trip",
        "tests/text/test_tokenizer.py::test_the_two_exceptions",
    ),
    "7 one clear error": (
        f"{MAIN}::test_broken_checkpoint",
        f"{MAIN}::test_wrong_use",
        f"{MAIN}::test_no_abbreviations",
        "tests/weights/test_files.py",
        "tests/weights/test_load.py",
        "tests/test_llm.py::test_bad_prompts",
        "tests/test_llm.py::test_bad_messages",
        "tests/test_llm.py::test_a_prompt_longer_than_the_context",
    ),
    "8 what nano can do": ("tests/evaluate/test_scores.py",),
    "fast paths equal the reference": (
        "tests/kernels/test_head_tiles.py",
        "tests/kernels/test_controls.py",
        "tests/kernels/test_experts.py",
        "tests/kernels/test_attention.py",
    ),
    "Triton kernels in the interpreter": ("tests/kernels/test_in_the_interpreter.py",),
    "memory of a run as predicted": ("tests/cli/test_info_memory.py",),
    "engine 1 random traffic, same tokens": (
        "tests/engine/test_traffic.py::test_random_arrivals",
        "tests/engine/test_traffic.py::test_random_lives_on_a_tiny_model",
        "tests/engine/test_traffic.py::test_preemption_resumes_the_canvas",
    ),
    "engine 2 the scheduler, simulated": (
        "tests/engine/test_scheduler.py",
        "tests/engine/test_pages.py",
        "tests/engine/test_traffic.py::test_cached_prompts_of_others_are_encoded_again",
    ),
    "engine 3 and 6 throughput, newcomers, cached prompts": (
        "tests/bench/test_offline.py",
        "tests/engine/test_traffic.py::test_a_cached_prompt_is_not_encoded_again",
    ),
    "engine 4 faults at every stage": ("tests/engine/test_faults.py",),
    "canvas 1 pinned text and edits, byte for byte": (
        "tests/compose/test_decide.py",
        "tests/compose/test_edit.py",
        "tests/compose/test_fill.py",
        "tests/compose/test_lengths.py",
        "tests/compose/test_on_nano.py",
        "tests/engine/test_canvas_control.py",
    ),
    "canvas 2 structured output on random weights": (
        "tests/engine/test_structured.py",
        "tests/constrain/test_grammar.py",
        "tests/constrain/test_completion.py",
        "tests/constrain/test_tool_calls.py",
        "tests/constrain/test_schema_features.py",
        "tests/diffusion/test_constrained.py",
    ),
    "canvas 2 a search for an end holds up nobody else": (
        "tests/engine/test_searches.py",
        "tests/engine/test_structured.py::test_the_budget_of_a_search_changes_no_token",
        "tests/engine/test_structured.py::test_longest_step_of_a_neighbour",
    ),
    "canvas 3 and 5 what nano gains, decisions": ("tests/evaluate/test_canvas.py",),
    "canvas 6 contradictions before any step": (
        "tests/engine/test_canvas_control.py::test_refused_before_any_step",
        "tests/constrain/test_schema_proofs.py",
    ),
    "server 1 real clients": (
        "tests/clients/test_openai.py",
        "tests/clients/test_others.py",
    ),
    "server 2 equal to llm.chat": (
        "tests/server/test_chat.py::test_answers_equal_those_of_chat",
        "tests/server/test_chat.py::test_answers_are_the_same_under_load",
    ),
    "server 3 fuzz, hang-ups": (
        "tests/server/test_fuzz.py",
        "tests/server/test_leaving.py",
        "tests/server/test_soak.py::test_a_hundred_connections_are_dropped",
    ),
    "server 4 soak": ("tests/server/test_soak.py::test_soak",),
    "server 5 shutdown": (
        "tests/server/test_serve.py::test_start_answer_and_stop",
        "tests/server/test_serve.py::test_stop_under_load",
        "tests/server/test_serve.py::test_health_after_loading",
    ),
    "server 6 every field": (
        "tests/server/test_fields.py",
        "tests/server/test_canvas_route.py",
        "tests/server/test_completions.py",
        "tests/server/test_decisions.py",
        "tests/server/test_edit.py",
        "tests/server/test_fim.py",
        "tests/server/test_messages.py",
    ),
    "server 7 refusals": (
        "tests/server/test_errors.py",
        "tests/server/test_refusals.py",
        "tests/server/test_every_route.py",
    ),
    "server 8 docs/serving.md snippets": (
        "tests/test_docs.py::test_shell_of_the_serving_page_runs",
        "tests/test_docs.py::test_python_of_the_serving_page_runs",
        "tests/test_docs.py::test_other_clients_of_the_serving_page",
        "tests/test_docs.py::test_serving_page_has_every_option_with_its_default",
        "tests/test_docs.py::test_serving_page_has_every_status",
        "tests/test_docs.py::test_serving_page_names_metrics_that_exist",
        "tests/test_docs.py::test_serving_page_has_the_fields_of_the_schemas",
    ),
    "one batch 1 kernels, objects, waits, tokens": (
        "tests/model/test_paged.py",
        "tests/engine/test_paged.py",
        "tests/kernels/test_attention_paged.py",
    ),
    "one batch 2 the reference path": (
        "tests/golden/test_golden.py",
        "tests/engine/test_faults.py",
    ),
    "one batch 3 pages by content": ("tests/engine/test_pages.py",),
    "one batch 4 kernels for six GPU targets": (
        "tests/kernels/test_gpu_compiles.py",
        "tests/kernels/test_gpu_limits.py",
        "tests/kernels/test_in_the_interpreter.py",
        "tests/bench/test_gpu.py",
    ),
    "one batch 6 streams of plans": (
        "tests/compose/test_run.py",
        "tests/server/test_plan_streams.py",
    ),
    "values across the border": (
        "tests/test_values.py",
        "tests/server/test_event_loop.py",
    ),
    "faults: keys share the engine": ("tests/engine/test_fairness.py", "tests/server/test_keys.py"),
    "faults: keys keep their prompts": ("tests/engine/test_pages.py", "tests/server/test_keys.py"),
    "engine 5 soak": ("tests/engine/test_traffic.py::test_soak", "tests/engine/test_worker.py"),
}
"""Acceptance line -> its tests: files, or single tests. Line 9 is `IN_A_CLONE`."""

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
    report: dict[str, Any], closing: str, command: str, cloned: list[tuple[str, int, float]] | None
) -> str:
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
    options, arguments = parser.parse_known_args()
    shares = [arguments] if arguments else SHARES
    with ThreadPoolExecutor(len(shares)) as pool:
        code, closing, report = together(list(pool.map(run_pytest, shares)))
    if code not in FINISHED:
        print(f"pytest did not finish (exit code {code}); {DOCUMENT} is as before")
        return code
    cloned = None if options.no_clone else in_a_clone()
    command = " ".join(["pytest --full", *arguments])
    options.output.write_text(document(report, closing, command, cloned), encoding="utf-8")
    print(f"wrote {options.output}")
    rows = acceptance(report["tests"])
    open_lines = [f"{row[0]}: {row[-1]}" for row in rows if not row[-1].startswith("holds")]
    open_lines += [f"9 {name}: exit code {code}" for name, code, _ in cloned or () if code]
    print("\n".join(open_lines) or "every acceptance line that was run holds")
    return 1 if code or open_lines else 0


if __name__ == "__main__":
    sys.exit(main())
