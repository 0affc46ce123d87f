"""The tests of the Triton kernels on machines without CUDA: in Triton's interpreter.

It must be asked for before the kernels are imported, so they run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

MODULES = sorted(Path(__file__).parent.glob("test_triton_*.py"))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_kernels_in_the_interpreter(full: bool) -> None:
    """Catches a kernel that no machine of a contributor has run."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, MODULES)]
    command += ["--full"] * full
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=interpreted, capture_output=True, text=True)
    assert len(MODULES) == 4
    assert done.returncode == 0, done.stdout + done.stderr
    for module in MODULES:
        assert module.name in done.stdout
