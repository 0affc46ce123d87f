"""Limits of GPUs, and the fallback to smaller blocks, on a device that only compiles."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import pytest
import torch

from dgemma.errors import DeviceError
from dgemma.kernels.gpu import LIMITS, blocks_per_processor

pytest.importorskip("triton", reason="the kernels need the triton package")
from triton.backends.compiler import GPUTarget

from dgemma.bench.gpu_compile import CompileOnlyDriver, compile_only
from dgemma.bench.gpu_launches import meta
from dgemma.kernels import experts_triton, launch

compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
KB = 1024


def test_occupancy_against_known_figures() -> None:
    """By hand, from NVIDIA's tables: each limit in turn, and blocks that cannot start."""
    h100, rtx = LIMITS[90], LIMITS[89]
    assert blocks_per_processor(h100, 4, 32, 0) == 16  # 64 warps
    assert blocks_per_processor(h100, 1, 16, 0) == 32  # blocks
    assert blocks_per_processor(h100, 8, 255, 0) == 1  # registers: 8 x 8192 = all of them
    assert blocks_per_processor(h100, 8, 128, 0) == 2
    assert blocks_per_processor(h100, 4, 65, 0) == 7  # 72 after rounding: 65536 / (4 x 2304)
    assert blocks_per_processor(h100, 4, 32, 113 * KB) == 2  # and 1 KB each for the driver
    assert blocks_per_processor(h100, 4, 32, 114 * KB) == 1
    assert blocks_per_processor(rtx, 4, 32, 99 * KB) == 1
    assert blocks_per_processor(rtx, 4, 32, 99 * KB + 1) == 0
    assert blocks_per_processor(rtx, 4, 32, 0) == 12  # 48 warps
    assert blocks_per_processor(LIMITS[100], 4, 32, 0, 256) == 2  # tensor memory
    limits = {name: found.shared_bytes // KB for name, found in LIMITS.items()}
    assert limits == {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has limits of its own")
def test_the_interpreter_has_limits() -> None:
    """A kernel that asks for limits where no driver is."""
    assert launch.limits() == LIMITS[90]


def test_a_device_of_no_known_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer or an older GPU than those of the table: its own figures, the rest of the nearest."""
    for capability, like in ((121, 120), (103, 100), (75, 80)):
        asked = replace(LIMITS[like], capability=capability, shared_bytes=50_000, processors=7)
        with compile_only(asked):
            assert launch.limits() == asked
    with compile_only(asked) as device:
        other = GPUTarget("hip", "gfx942", 64)
        monkeypatch.setattr(device, "get_current_target", lambda: other)
        assert launch.limits() == replace(asked, capability=80)


def run_experts(rows: int) -> torch.Tensor:
    """Two experts, wide enough for every stage."""
    return experts_triton.experts_triton(
        meta(rows, 512, dtype=torch.bfloat16), meta(rows, 2, dtype=torch.int64), meta(rows, 2),
        meta(2, 1024, 512, dtype=torch.bfloat16), meta(2, 512, 512, dtype=torch.bfloat16),
    )  # fmt: skip


def products(device: CompileOnlyDriver) -> list[int]:
    """Rows of a block of each compiled first product."""
    words = [one.config.split() for one in device.compiled.values() if one.kernel == "_up"]
    return [int(word.removeprefix("ROWS=")) for row in words for word in row if "ROWS=" in word]


@compiles
@pytest.mark.slow
@pytest.mark.process
def test_blocks_follow_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Blocks chosen for an H100 wherever the kernel runs: no launch on a GPU with 99 KB."""
    for limit, rows in ((227 * KB, 128), (80 * KB, 32), (12 * KB, 16)):
        with compile_only(replace(LIMITS[90], shared_bytes=limit)) as device:
            assert run_experts(512).shape == (512, 512)
        assert products(device) == [rows]
        assert all(one.shared_bytes <= limit for one in device.compiled.values())
    assert not caplog.records


@compiles
@pytest.mark.slow
@pytest.mark.process
def test_out_of_resources_takes_the_next_smaller_blocks_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A formula that says too little: the launch fails for good, or fails again at every call."""
    monkeypatch.setattr(experts_triton, "shared_bytes", lambda *_: 0)
    with caplog.at_level(logging.WARNING, "dgemma"):
        with compile_only(replace(LIMITS[90], shared_bytes=62_000)) as device:
            for _ in range(3):
                assert run_experts(512).shape == (512, 512)
            assert products(device) == [128, 64, 32]
            device.compiled.clear()
            run_experts(512)
            assert not device.compiled
        said = [record.message for record in caplog.records]
        assert len(said) == 2 and all("next smaller blocks" in line for line in said)
        assert "98304" in said[0] and "62000" in said[0] and "rows=128" in said[0]


@compiles
@pytest.mark.slow
@pytest.mark.process
def test_no_room_at_all_is_one_clear_error() -> None:
    """Triton's own error reaches the user, who can do nothing with it."""
    with compile_only(replace(LIMITS[90], shared_bytes=1000)):
        for _ in range(2):
            with pytest.raises(DeviceError, match="smallest blocks.*use another device"):
                run_experts(512)
