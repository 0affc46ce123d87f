"""The machine of a measurement: processor, memory, GPU, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dgemma.bench.clock import proc_bytes, proc_field

PACKAGES = ("dgemma", "torch", "transformers", "safetensors", "triton")
LOOK_S = 0.5
"""How long `load` looks."""

QUIET = 0.4
"""Above this load others compete for the cores."""

ROOT = Path(__file__).resolve().parents[2]


def processor() -> str:
    """The CPU's model name and its extensions that matter here."""
    name = proc_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown"
    flags = (proc_field("/proc/cpuinfo", "flags") or "").split()
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(wanted)})" if wanted else name


def gpu() -> str:
    """The CUDA device's name and memory, or "none"."""
    if not torch.cuda.is_available():
        return "none"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB"


def commit() -> str:
    """The commit of this source, with "-dirty" if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown (no git checkout)"


def versions() -> dict[str, str]:
    """Installed versions; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found


def _busy_ticks() -> int:
    """Clock ticks that all cores have worked since the machine started."""
    first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    user, nice, system, _, _, interrupts, soft, stolen = (int(n) for n in first.split()[1:9])
    return user + nice + system + interrupts + soft + stolen


@cache
def load() -> float | None:
    """Cores that other programs keep busy, seen once for `LOOK_S`; None if the system is silent.

    Not the load average, which would be that of our own preceding command.
    """
    started = time.monotonic()
    try:
        before = _busy_ticks()
        time.sleep(LOOK_S)
        worked = _busy_ticks() - before
    except OSError:
        return None
    return worked / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started)


def busy() -> str:
    """A warning if other programs run, else nothing."""
    others = load()
    if others is None or others <= QUIET:
        return ""
    return (
        f"warning: other programs keep {others:.1f} cores busy; threads that wait for each other "
        "then lose whole time slices, so times may be many times too long"
    )


def facts() -> dict[str, str]:
    """Every fact of a report, as text."""
    usable = hasattr(os, "sched_getaffinity")
    memory = proc_bytes("/proc/meminfo", "MemTotal")
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if usable else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cores busy before": "unknown" if load() is None else f"{load():.1f}",
        "memory": f"{memory / 1e9:.1f} GB" if memory else "unknown",
        "GPU": gpu(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "commit": commit(),
    }
