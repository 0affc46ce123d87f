"""Block sizes by what the device allows, and the next smaller ones where a launch finds no room.

A kernel lists its candidates, largest first, and says how many bytes of shared memory each takes:

    candidates = fitting(tiles_for(rows), lambda tiles: shared_bytes(tiles, dtype))
    return launch_largest("experts", candidates, lambda tiles: _run(tiles, ...))

The formula keeps launches from failing; the compiler has the last word. If it needs more than the
device has, Triton raises OutOfResources before anything runs: the next candidate is taken, which
is said once and remembered. `dgemma bench gpu` compares formula and compiler without a GPU.
Needs the `triton` package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from triton.runtime.driver import driver
from triton.runtime.errors import OutOfResources

from dgemma.errors import DeviceError
from dgemma.kernels.gpu import LIMITS, GpuLimits

logger = logging.getLogger("dgemma")

FUSED = {"enable_fp_fusion": True}
"""Option of every launch: a product and a sum are one instruction, whatever Triton's default."""

Tiles = TypeVar("Tiles")
Result = TypeVar("Result")

_refused: set[tuple[int, str, object]] = set()
"""(device, kernel, tiles) that found no room; each was said once."""


def limits() -> GpuLimits:
    """Those of the current device; in Triton's interpreter, which has none, those of an H100."""
    device = _device()
    return LIMITS[90] if device < 0 else _limits(driver.active, device)


def _device() -> int:
    """Triton's current device; -1 in the interpreter."""
    try:
        return int(driver.active.get_current_device())
    except RuntimeError:  # no driver
        return -1


@lru_cache(maxsize=64)
def _limits(active: Any, device: int) -> GpuLimits:
    capability = active.get_current_target().arch
    facts = active.utils.get_device_properties(device)
    like = max((c for c in LIMITS if c <= capability), default=min(LIMITS))
    return replace(
        LIMITS[like],
        capability=capability,
        shared_bytes=facts["max_shared_mem"],
        processors=facts["multiprocessor_count"],
    )


def fitting(candidates: Sequence[Tiles], shared_bytes: Callable[[Tiles], int]) -> list[Tiles]:
    """The candidates that fit on this device, in their order; the last one if none does.

    Args:
        candidates: largest first.
        shared_bytes: of a block, an upper bound.
    """
    most = limits().shared_bytes
    found = [tiles for tiles in candidates if shared_bytes(tiles) <= most]
    return found or list(candidates[-1:])


def launch_largest(
    kernel: str, candidates: Sequence[Tiles], run: Callable[[Tiles], Result]
) -> Result:
    """Run with the first candidate that the device has room for.

    Args:
        kernel: its name, for the message.
        candidates: block sizes, largest first; hashable.
        run: launches; may be called again after it raised OutOfResources.

    Raises:
        DeviceError: there is no room even for the last one.
    """
    device = _device()
    problem: OutOfResources | None = None
    for tiles in candidates:
        if (device, kernel, tiles) in _refused and tiles != candidates[-1]:
            continue
        try:
            return run(tiles)
        except OutOfResources as error:
            problem = error
        if (device, kernel, tiles) not in _refused and tiles != candidates[-1]:
            logger.warning(
                "%s: %s need %d of %d %s; the next smaller blocks are used",
                kernel, tiles, problem.required, problem.limit, problem.name,
            )  # fmt: skip
        _refused.add((device, kernel, tiles))
    raise DeviceError(
        f"{kernel} finds no room on this device, even with its smallest blocks ({problem}); "
        "use another device or dtype, or the CPU"
    )
