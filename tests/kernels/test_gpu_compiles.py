"""Every kernel compiles for six GPUs within their limits, without a GPU.

By default each kernel at its largest launch for each target; with --full every launch that the
sizes of the released model and of nano reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from dgemma.bench.shapes import REAL
from dgemma.kernels.gpu import LIMITS

pytest.importorskip("triton", reason="the kernels need the triton package")
from dgemma.bench.gpu import DTYPES, MODELS, GpuJob, GpuJobResult, compile_job, config_of, excess
from dgemma.bench.gpu_compile import compile_calls
from dgemma.bench.gpu_launches import KERNELS, Reach

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
    ),
]
NO_SPILL = ("sm_89", "sm_90", "sm_100", "sm_120")
BROKEN = pytest.mark.xfail(
    strict=True, reason="attention of one request: blocks of an H100 everywhere, and it spills"
)
CASES = [
    pytest.param(part, target, marks=BROKEN if part == "attention" and target != 80 else ())
    for part in KERNELS
    for target in LIMITS
]


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


@pytest.mark.parametrize(("part", "target"), CASES)
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
    results = [compile_job(GpuJob(model, part, target, dtype)) for model in MODELS]
    check(next(result for result in results if result.launches), record)
    for result in results:
        if result.launches:
            check(result, record)


def test_the_sizes_of_a_batch_compile_nothing_new() -> None:
    """A constant that follows the rows: every size of a batch waits for the compiler."""
    config, dtype = REAL, torch.bfloat16

    def reaches(rows: tuple[int, ...], part: str, patch: pytest.MonkeyPatch) -> list[Reach]:
        patch.setattr("dgemma.bench.gpu_launches.ROWS", rows)
        return list(KERNELS[part](config, dtype))

    with pytest.MonkeyPatch.context() as patch:
        calls = reaches((256, 300, 417, 1024, 1337), "head", patch)
        launches, _ = compile_calls(calls, LIMITS[90])
        assert sorted(one.kernel for one in launches) == ["_absorb", "_block"]


def test_released_and_bundled_sizes_are_listed() -> None:
    """A report that leaves out the kernels of one of the two."""
    parts = {
        model: [part for part in KERNELS if list(KERNELS[part](config_of(model), torch.float16))]
        for model in MODELS
    }
    assert parts == {"26B": ["attention", "experts", "head"], "nano": ["attention"]}
