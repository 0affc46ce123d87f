"""Runs a process that opens a checkpoint of the released size; one that reads too much is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

START = """
import os, sys, threading, time, torch
from pathlib import Path
from dgemma.weights.files import open_checkpoint
from dgemma.weights.load import load_weights, packed_formats
from dgemma.model.transformer import DiffusionGemma
from dgemma.quant.modules import keeps_packed, swap

def held(what):  # not ru_maxrss: a child starts with that of the process that started it
    return int(Path("/proc/self/status").read_text().split(what)[1].split()[0]) * 1024

def guard():  # a loader that reads everything must not take the machine with it
    while held("VmRSS:") < 4e9:
        time.sleep(0.02)
    os._exit(3)

threading.Thread(target=guard, daemon=True).start()
start = time.perf_counter()
checkpoint = open_checkpoint(Path(sys.argv[1]))
with torch.device("meta"):
    model = DiffusionGemma(checkpoint.config)
"""
"""What it does first: `checkpoint`, `model` on the meta device, `held` and `start`."""


def opened(path: Path, then: str) -> list[float]:
    """The figures that a process prints that opens a checkpoint."""
    run = subprocess.run(
        [sys.executable, "-c", START + then, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode != 3, "more than 4 GB resident: the weights were read, not mapped"
    assert run.returncode == 0, run.stderr
    return [float(word) for word in run.stdout.split()]
