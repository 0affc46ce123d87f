"""`dgemma info` predicts the memory of a run: a process of its own, measured by the system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dgemma.bench.make import make
from dgemma.bench.shapes import shape

pytestmark = pytest.mark.process

RUN = """
import sys, dgemma
from dgemma.bench.clock import status_bytes
from dgemma.cli.main import main
model, prompt, dtype, cache = sys.argv[1:]
options = ["--dtype", dtype, "--cache-dtype", cache, "--prompt", prompt, "--json"]
assert main(["info", model, *options]) == 0
llm = dgemma.load(model, device="cpu", dtype=dtype, cache_dtype=cache)
llm.generate([5] * int(prompt), dgemma.SamplingParams(max_tokens=1, max_steps=2, seed=0))
print(status_bytes("VmHWM"))
"""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 243 MB in bf16."""
    return make(shape("mini"), tmp_path_factory.mktemp("mini") / "model")


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize(
    ("dtype", "prompt", "cache"),
    [
        ("float32", 64, "auto"),
        ("bfloat16", 1000, "auto"),
        pytest.param("bfloat16", 2000, "fp8", marks=pytest.mark.full),
        pytest.param("float32", 2000, "auto", marks=pytest.mark.full),
    ],
)
def test_the_prediction_is_within_5_percent(
    mini: Path, dtype: str, prompt: int, cache: str
) -> None:
    """A part left out (scratch, cache growth, a copy of the weights at loading) shows here."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(mini), str(prompt), dtype, cache],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    said, end = json.JSONDecoder().raw_decode(ran.stdout)
    predicted, measured = said["run"]["peak_bytes"], int(ran.stdout[end:])
    assert measured == pytest.approx(predicted, rel=0.05)
