"""Every kernel compiles for six GPUs within their limits, without a GPU.

By default each kernel at its largest launch for each target; with --full every launch that the
sizes of the released model and of nano reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from dgemma.bench import gpu_launches
from dgemma.bench.shapes import REAL
from dgemma.kernels.gpu import LIMITS

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.bench.gpu import (
    DTYPES,
    MODELS,
    PARTS,
    GpuJob,
    GpuJobResult,
    compile_job,
    config_of,
    excess,
)
from dgemma.bench.gpu_compile import compile_calls
from dgemma.bench.gpu_launches import KERNELS
from dgemma.bench.gpu_packed import PACKED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
    ),
]
NO_SPILL = ("sm_89", "sm_90", "sm_100", "sm_120")
CASES = [(part, target) for part in KERNELS for target in LIMITS]
PACKED_CASES = [(part, target) for part in PACKED for target in LIMITS]
SAMPLED = [(part, target) for part, target in PACKED_CASES if part in ("Q4_K_M", "NVFP4")
           and target in (86, 90)]  # fmt: skip
"""The files that most people have, on the least shared memory and on the newer tensor cores."""


def check(result: GpuJobResult, record: Callable[..., None]) -> None:
    """Nothing refused, nothing over its limit or its formula, no spill where it is hot."""
    assert result.launches and not result.refused
    assert not excess([result])
    for one in result.launches:
        assert one.shared_bytes <= one.limit_bytes and one.occupancy >= 1, one
        assert one.registers <= 255
        if one.target in NO_SPILL:
            assert one.spill_bytes == 0, one
    spill = max(one.spill_bytes for one in result.launches)
    record(f"{result.job.part}: most spilled bytes, {result.launches[0].target}", spill)


@pytest.mark.parametrize(("part", "target"), CASES + SAMPLED)
def test_the_largest_launch_compiles(part: str, target: int, record: Callable[..., None]) -> None:
    """A kernel that no GPU of this kind could start, or that keeps its sums in memory."""
    check(compile_job(GpuJob("26B", part, target, "bfloat16"), 1), record)


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("part", "target"), CASES)
def test_every_launch_compiles(
    part: str, target: int, dtype: str, record: Callable[..., None]
) -> None:
    """The same for every block size, every kind of layer, both dtypes, both models."""
    reached = [
        model for model in MODELS if list(KERNELS[part](config_of(model), getattr(torch, dtype)))
    ]
    assert reached
    for model in reached:
        check(compile_job(GpuJob(model, part, target, dtype)), record)


@pytest.mark.full
@pytest.mark.parametrize(("part", "target"), PACKED_CASES)
def test_every_launch_with_packed_weights_compiles(
    part: str, target: int, record: Callable[..., None]
) -> None:
    """Every block size and every format of a file."""
    check(compile_job(GpuJob("26B", part, target, "bfloat16")), record)


def test_the_sizes_of_a_batch_compile_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that follows the rows: every size of a batch waits for the compiler."""
    monkeypatch.setattr(gpu_launches, "ROWS", (256, 300, 417, 1024, 1337))
    launches, _ = compile_calls(list(KERNELS["head"](REAL, torch.bfloat16)), LIMITS[90])
    assert sorted(one.kernel for one in launches) == ["_absorb", "_block"]
    launches, _ = compile_calls(list(KERNELS["experts"](REAL, torch.bfloat16)), LIMITS[90])
    rows = {one.config.split("ROWS=")[1].split()[0] for one in launches if one.kernel == "_up"}
    assert len([one for one in launches if one.kernel == "_up"]) == len(rows)


def test_released_and_bundled_sizes_are_listed() -> None:
    """A report that leaves out the kernels of one of the two."""
    parts = {
        model: [part for part in PARTS if list(PARTS[part](config_of(model), torch.float16))]
        for model in MODELS
    }
    plain = ["attention", "attention, fp8", "experts", "head"]
    assert parts == {"26B": [*plain, *PACKED], "nano": plain[:2]} and len(PACKED) == 6
