"""A GPU that only compiles: Triton runs its launch path for one, up to the launch itself.

The host functions of the kernels are called as in a run, with tensors on torch's meta device.
Triton specialises on the arguments, compiles for the device's capability with its own ptxas, and
refuses an excess of shared memory as on the device; nothing is computed. So all that a launch
depends on is real: alignment of pointers and strides, block sizes, the fallback to smaller ones.
The compiled code is read with cuobjdump. Needs the `triton` package; its disk cache keeps the code.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver
from triton.runtime.errors import OutOfResources

from dgemma.bench.gpu_launches import CompiledLaunch, Reach
from dgemma.errors import DeviceError
from dgemma.kernels.gpu import GpuLimits, blocks_per_processor
from dgemma.kernels.launch import expected_bytes

_numbers = count(1000)
"""Device numbers: Triton keeps what it compiled and asked by number, so none is used twice."""


class CompileOnlyDriver:
    """Triton's driver of a device that is not there. Each one is another device."""

    def __init__(self, limits: GpuLimits) -> None:
        self.limits = limits
        self.number = next(_numbers)
        self.compiled: dict[str, CompiledLaunch] = {}
        self.utils = self

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.limits.capability, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.limits.shared_bytes,
            "multiprocessor_count": self.limits.processors,
        }

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Called once for each compiled kernel, before its shared memory is compared."""
        self.compiled[metadata.hash] = read(source, metadata, self.limits)
        return lambda *arguments: None

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills, threads: nothing is loaded."""
        return 0, 0, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


@contextmanager
def compile_only(limits: GpuLimits) -> Iterator[CompileOnlyDriver]:
    """Triton's device is one of these limits within the block; `compiled` fills up."""
    before = driver._active
    own = CompileOnlyDriver(limits)
    driver.set_active(own)
    try:
        yield own
    finally:
        driver.set_active(before)


def read(source: Any, metadata: Any, limits: GpuLimits) -> CompiledLaunch:
    """What the compiler made of a kernel."""
    group = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json") or {}
    registers, local = resources(group[f"{metadata.name}.cubin"])
    names = source.fn.arg_names
    config = {names[place]: value for (place,), value in source.constants.items()}
    config = {n: f"{v:.3g}" if isinstance(v, float) else v for n, v in config.items()}
    config |= {"warps": metadata.num_warps, "stages": metadata.num_stages}
    columns = metadata.tmem_size or 0
    return CompiledLaunch(
        kernel=metadata.name,
        target=limits.name,
        config=" ".join(f"{name}={value}" for name, value in config.items()),
        shared_bytes=metadata.shared,
        expected_bytes=expected_bytes(),
        limit_bytes=limits.shared_bytes,
        registers=registers,
        spill_bytes=local,
        tensor_columns=columns,
        occupancy=blocks_per_processor(
            limits, metadata.num_warps, registers, metadata.shared, columns
        ),
    )


def resources(cubin: str) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, of the one kernel in a file."""
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def compile_calls(
    calls: Sequence[Reach], limits: GpuLimits
) -> tuple[list[CompiledLaunch], list[str]]:
    """Compile the launches of calls: each launch once, and the calls for which there is no room."""
    refused = []
    with compile_only(limits) as device:
        for reach in calls:
            try:
                reach.call()
            except (OutOfResources, DeviceError) as error:
                refused.append(f"{reach.name}: {error}")
    return list(device.compiled.values()), refused
