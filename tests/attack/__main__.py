"""`python -m tests.attack`: abuse a server of our own, class by class, and judge what it did.

    python -m tests.attack                    every class
    python -m tests.attack numbers patterns   some of them (their names with _ for blanks)

For each class: the longest silence of /health, a neighbour's small chats, memory, descriptors, the
log, and what was answered. Ends by itself. Exit code 1: a limit was passed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.stats import percentile
from dgemma.bench.report import Table, as_table, plain
from tests.attack.attacks import ASK, ATTACKS, CHAT, with_tool
from tests.attack.server import Held, Target, serving
from tests.support.bodies import ALL

ROOT = Path(__file__).parents[2]
SILENCE_MS = 250.0
TIMES_QUIET = 5.0
ALWAYS_MS = 1_000.0
HELD_S = 90.0
MEMORY_GROWTH = 1.15
LOG_BYTES = 1_000_000
SPARE_DESCRIPTORS = 4
IDLE_CORES = 0.2
"""A server that uses less than this share of a core works on nothing."""


@dataclass(frozen=True)
class Result:
    """One class.

    Attributes:
        silence_ms: the slowest answer of /health.
        p50_ms, p99_ms: of the neighbour's chats; `failed`: of its calls, by how.
        before, after: what the server held; `after` once it is quiet again.
        held_s: seconds until nothing was held any more; infinite: longer than allowed.
        log_bytes: growth of the log.
        answers: what the attackers were answered.
        alive: whether the server is still there.
    """

    name: str
    silence_ms: float
    chats: int
    p50_ms: float
    p99_ms: float
    failed: dict[str, int]
    before: Held
    after: Held
    held_s: float
    answers: dict[str, int]
    alive: bool

    def faults(self, quiet_p99_ms: float) -> list[str]:
        """The limits that were passed."""
        allowed = max(ALWAYS_MS, TIMES_QUIET * quiet_p99_ms)
        growth = self.after.memory_mb / self.before.memory_mb
        log_bytes = self.after.log_bytes - self.before.log_bytes
        checks = {
            f"/health was silent for {self.silence_ms:.0f} ms": self.silence_ms > SILENCE_MS,
            f"the neighbour's p99 is {self.p99_ms:.0f} ms": not self.p99_ms <= allowed,
            f"the neighbour's calls failed: {self.failed}": bool(self.failed),
            "something is held": math.isinf(self.held_s),
            f"memory is {growth:.2f} of before": growth > MEMORY_GROWTH,
            f"the log grew by {log_bytes} bytes": log_bytes > LOG_BYTES,
            f"5xx: {self.answers}": any(name[:1] == "5" and name != "503" for name in self.answers),
            f"broken: {self.answers}": any(name.startswith("broke") for name in self.answers),
            "the server is gone": not self.alive,
        }
        return [text for text, passed in checks.items() if passed]


def module(name: str, *words: object) -> subprocess.Popen[str]:
    """A module of this package as a process of its own, prepared; a line sets it going."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.attack.{name}", *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Set a prepared process going."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def read(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """The JSON that a process prints in the end; empty if it does not end in time."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {}
    found: dict[str, Any] = json.loads(said) if said else {}
    return found


def settled(target: Target, before: Held) -> tuple[float, Held]:
    """Wait until the server holds no more than before; the seconds, and what it holds then."""
    began = time.monotonic()
    while True:
        busy, now = target.busy(), target.held()
        quiet = (
            now.requests == 0
            and now.descriptors <= before.descriptors + SPARE_DESCRIPTORS
            and now.memory_mb <= MEMORY_GROWTH * before.memory_mb
            and busy < IDLE_CORES
        )
        seconds = time.monotonic() - began
        if quiet or seconds > HELD_S or not target.alive:
            return (seconds if quiet else math.inf), now


def run(target: Target, name: str, seconds: float) -> Result:
    """One class, for so many seconds; `quiet` is nobody's attack."""
    before = target.held()
    neighbour = target.neighbour
    watching = module("watch", neighbour.port, neighbour.key, seconds + 1)
    answers: dict[str, int] = {}
    if name == "quiet":
        go(watching)
    else:
        attacking = module("attacks", name, target.attacker.port, target.attacker.key, seconds)
        go(watching)
        go(attacking)
        answers = read(attacking, seconds + 60)
    seen = read(watching, seconds + 90)
    held_s, after = settled(target, before)
    health, chats = seen.get("health_ms", []), seen.get("chat_ms", [])
    return Result(
        name, max(health, default=math.inf), len(chats),
        percentile(chats, 50) if chats else math.inf, percentile(chats, 99) if chats else math.inf,
        seen.get("failed", {}), before, after, held_s, answers, target.alive,
    )  # fmt: skip


def warm_up(target: Target) -> None:
    """Do once what makes the server load or write to something for the first time."""
    for path, body in ALL.items():
        target.neighbour.post(path, body, 60)
    target.neighbour.post(CHAT, with_tool({"type": "string"}), 60)
    target.neighbour.post(CHAT, ASK | {"max_tokens": 1_000, "min_tokens": 1_000, "n": 16}, 60)
    settled(target, target.held())


def row(result: Result) -> list[Any]:
    """For the table."""
    return [
        result.name, result.silence_ms, result.chats, result.p50_ms, result.p99_ms,
        f"{result.before.memory_mb:.0f} > {result.after.memory_mb:.0f}",
        f"{result.before.descriptors} > {result.after.descriptors}",
        result.after.log_bytes - result.before.log_bytes,
        "no end" if math.isinf(result.held_s) else f"{result.held_s:.1f}",
        ", ".join(f"{name}: {count}" for name, count in sorted(result.answers.items())),
    ]  # fmt: skip


HEAD = (
    "class", "longest silence of /health, ms", "neighbour's chats", "p50, ms", "p99, ms",
    "memory, MB", "descriptors", "log, bytes", "held for, s", "answers",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the classes, print the table; 0 if every limit held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="CLASS", help="classes (all)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each class (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number as JSON")
    options = parser.parse_args(argv)
    wanted = [name.replace("_", " ") for name in options.names] or list(ATTACKS)
    if unknown := set(wanted) - set(ATTACKS):
        parser.error(f"no such class: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    results, faults = list[Result](), list[str]()
    with serving() as target:
        warm_up(target)
        quiet = run(target, "quiet", options.seconds)
        for name in ("quiet", *wanted):
            result = quiet if name == "quiet" else run(target, name, options.seconds)
            results.append(result)
            found = result.faults(quiet.p99_ms)
            faults += [f"{name}: {fault}" for fault in found]
            print(f"{name}: {'; '.join(found) or 'withstood'}", file=sys.stderr, flush=True)
            if not target.alive:
                break
        if "Traceback" in target.log.read_text(errors="replace"):
            faults.append("the log holds a traceback")
    about = [[name, ATTACKS[name][0]] for name in wanted]
    print("\n".join(as_table(Table("Classes", ("class", "what it does"), about))), end="\n\n")
    print("\n".join(as_table(Table("Results", HEAD, [row(result) for result in results]))))
    print("\n" + ("\n".join(faults) or "every limit held"))
    if options.json is not None:
        options.json.write_text(json.dumps({"results": plain(results), "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
