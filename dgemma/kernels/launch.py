"""Block sizes by what the device allows, and the next smaller ones where a launch finds no room.

A kernel lists its candidates, largest first, and says how many bytes of shared memory each takes:

    launch_largest("mine", candidates(rows), shared_bytes, lambda tiles: _run(tiles, x, out))

The formula keeps launches from failing; the compiler has the last word. If it needs more than the
device has, Triton raises OutOfResources before the kernel runs: the next candidate is taken, which
is said once and remembered. `dgemma bench gpu` compares formula and compiler without a GPU.
Needs the `triton` package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
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

_expected: ContextVar[int | None] = ContextVar("expected_bytes", default=None)
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
    target = active.get_current_target()
    capability = target.arch if target.backend == "cuda" else min(LIMITS)
    facts = active.utils.get_device_properties(device)
    like = max((c for c in LIMITS if c <= capability), default=min(LIMITS))
    return replace(
        LIMITS[like],
        capability=capability,
        shared_bytes=facts["max_shared_mem"],
        processors=facts["multiprocessor_count"],
    )


def launch_largest(
    kernel: str,
    candidates: Sequence[Tiles],
    shared_bytes: Callable[[Tiles], int],
    run: Callable[[Tiles], Result],
) -> Result:
    """Run with the first candidate that the device has room for.

    Args:
        kernel: its name, with whatever else decides its room (dtype, head size): for the message,
            and for the memory of what was refused.
        candidates: block sizes, largest first; hashable.
        shared_bytes: of a block, at most; what does not fit by it is not tried, but the last is.
        run: launches; is called again, with smaller blocks, if it raised OutOfResources.

    Raises:
        DeviceError: there is no room even for the last one.
    """
    device, most, problem = _device(), limits().shared_bytes, ""
    for tiles in candidates:
        key, last = (device, kernel, tiles), tiles == candidates[-1]
        if not last and (key in _refused or shared_bytes(tiles) > most):
            continue
        token = _expected.set(shared_bytes(tiles))
        try:
            return run(tiles)
        except OutOfResources as error:
            problem = str(error)  # itself it would hold the tensors of the call
        finally:
            _expected.reset(token)
        if not last:
            _refused.add(key)
            logger.warning("%s: %s: %s The next smaller blocks are used.", kernel, tiles, problem)
    raise DeviceError(
        f"{kernel} finds no room on this device, even with its smallest blocks ({problem}); "
        "use another device or dtype, or the CPU"
    )


def expected_bytes() -> int | None:
    """Shared memory that the launch in progress should take at most; None: its kernel has no
    formula."""
    return _expected.get()
