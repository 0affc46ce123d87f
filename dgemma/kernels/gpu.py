"""What a GPU allows a kernel, by compute capability, and how many blocks share a processor.

Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Knows no
kernel and needs no GPU; `launch` asks the device that runs.
"""

from __future__ import annotations

from dataclasses import dataclass

KB = 1024
REGISTERS = 65_536
"""Of a processor, in every capability below."""

MOST_REGISTERS = 255
"""Of a thread."""

REGISTER_UNIT = 256
"""Registers of a warp are handed out in this many."""

RESERVED_BYTES = KB
"""Shared memory of each block that the driver keeps."""

TENSOR_COLUMNS = 512
"""Columns of tensor memory of a processor, where there is one (sm_100)."""


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """What one device allows.

    Attributes:
        capability: major * 10 + minor.
        shared_bytes: shared memory that one block may have.
        processor_bytes: shared memory of a processor, of all its blocks.
        warps, blocks: most that a processor holds at a time.
        processors: of the device.
        example: a device of this capability.
    """

    capability: int
    shared_bytes: int
    processor_bytes: int
    warps: int
    blocks: int
    processors: int
    example: str = ""

    @property
    def name(self) -> str:
        """As compilers write it: sm_90."""
        return f"sm_{self.capability}"


LIMITS = {
    limits.capability: limits
    for limits in (
        GpuLimits(80, 163 * KB, 164 * KB, 64, 32, 108, "A100"),
        GpuLimits(86, 99 * KB, 100 * KB, 48, 16, 82, "RTX 3090"),
        GpuLimits(89, 99 * KB, 100 * KB, 48, 24, 128, "RTX 4090"),
        GpuLimits(90, 227 * KB, 228 * KB, 64, 32, 132, "H100, H200"),
        GpuLimits(100, 227 * KB, 228 * KB, 64, 32, 148, "B200"),
        GpuLimits(120, 99 * KB, 100 * KB, 48, 24, 170, "RTX 5090"),
    )
}
"""Compute capability -> its limits, with the processors of the example."""


def blocks_per_processor(
    limits: GpuLimits, warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0
) -> int:
    """How many blocks of a kernel a processor holds at a time: its occupancy; 0: none can start.

    The least of: its blocks; its warps over those of a block; its 65,536 registers over those of a
    block (32 threads x registers of a thread, in units of 256 a warp); its shared memory over that
    of a block and 1 KB; its tensor memory over that of a block.

    Args:
        warps: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
        tensor_columns: of a block, on sm_100.
    """
    if shared_bytes > limits.shared_bytes or registers > MOST_REGISTERS:
        return 0
    of_a_warp = -(-32 * registers // REGISTER_UNIT) * REGISTER_UNIT
    found = [limits.blocks, limits.warps // warps]
    if of_a_warp:
        found.append(REGISTERS // of_a_warp // warps)
    found.append(limits.processor_bytes // (shared_bytes + RESERVED_BYTES))
    if tensor_columns:
        found.append(TENSOR_COLUMNS // tensor_columns)
    return min(found)
