"""What `dgemma check` says; whole generations are compared in tests/diffusion/test_parity_nano."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dgemma
from dgemma.cli.main import main
from dgemma.evaluate.parity import compare

pytestmark = pytest.mark.model


def test_one_step_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison that compares nothing, or a command that hides the verdict."""
    code = main(["check", "nano", "--device", "cpu", "--dtype", "float32", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["step_difference"] <= result["tolerance"] == 2e-5
    # In a hesitating canvas rounding may turn a token; then the command must say so.
    assert result["passed"] == (result["same_steps"] and result["same_tokens"]) == (code == 0)


def test_another_network_does_not_hold(tmp_path: Path) -> None:
    """One weight other than in the files: the step must tell, not only the generation."""
    llm = dgemma.load("nano", device="cpu", dtype="float32")
    layer: Any = llm.model.layers[3]
    layer.denoise_scalar.mul_(1.01)
    result = compare(llm, "Hello", 0)
    assert result["step_difference"] > 10 * result["tolerance"] and not result["passed"]
