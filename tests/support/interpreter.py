"""Tests of Triton kernels: on CUDA, or in Triton's interpreter, which takes a second for a case."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no CUDA; test_in_the_interpreter.py runs these on the CPU",
)


def usable(dtype: torch.dtype) -> torch.dtype:
    """The dtype, unless the interpreter computes wrongly with it."""
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("bf16 products are wrong in Triton's interpreter")
    return dtype


def rarely(*values: Any) -> Any:
    """A case that the interpreter runs with --full alone: a quicker one is of its kind."""
    return pytest.param(*values, marks=pytest.mark.full if INTERPRETED else ())
