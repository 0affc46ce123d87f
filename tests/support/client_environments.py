"""Environments of their own for other people's clients, in `.venv/clients`."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.support.sources import ROOT

CLIENTS = ROOT / "tests" / "clients"
DONE = "installed.txt"
"""In an environment: the requirements that were installed into it, written last."""


def index_is_there(python: str) -> bool:
    """Whether pip finds a package index."""
    asked = [python, "-m", "pip", "index", "versions", "anthropic", "--quiet"]
    return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0


def environment(name: str) -> str:
    """The interpreter of a client's environment, made if it is not there."""
    folder, needs = ROOT / ".venv" / "clients" / name, CLIENTS / name / "requirements.txt"
    python, done = folder / "bin" / "python", folder / DONE
    if done.exists() and done.read_text() == needs.read_text():
        return str(python)
    if not index_is_there(sys.executable):
        pytest.skip("no package index can be reached, and the client is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(needs)], check=True)
    done.write_text(needs.read_text())
    return str(python)
