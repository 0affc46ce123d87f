"""Picks the device and the dtype once, each with its reason as text.

Knows which devices torch can see. Knows nothing about models beyond their size in bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma.errors import DeviceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SMALL_BYTES = 10**9
"""Below this size of the fp32 weights a CPU runs in fp32."""


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device and a dtype, and why."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str
    dtype_reason: str


def choose_device(asked: str | torch.device = "auto") -> tuple[torch.device, str]:
    """The device to run on, and the reason.

    Raises:
        DeviceError: the device asked for is unknown or not there.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"CUDA device found: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Metal device found"
        return torch.device("cpu"), "no CUDA device found"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"unknown device {asked!r}; use auto, cpu, cuda or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {asked!r} asked for, but torch sees no CUDA device; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device {asked!r} asked for, but torch sees no Metal device; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {asked!r} is not supported; use auto, cpu, cuda or mps")
    return device, "asked for"


def choose_dtype(
    asked: str | torch.dtype, device: torch.device, parameters: int, stored: str | None
) -> tuple[torch.dtype, str]:
    """The dtype to run in, and the reason.

    Args:
        asked: "auto", a name of `DTYPES` or `SHORT_NAMES`, or torch's own.
        parameters: how many there are.
        stored: the checkpoint's own dtype.

    Raises:
        DeviceError: an unknown dtype.
    """
    if asked != "auto":
        name = str(asked).removeprefix("torch.")
        name = SHORT_NAMES.get(name, name)
        if name not in DTYPES:
            raise DeviceError(f"unknown dtype {asked!r}; use auto, {', '.join(DTYPES)}")
        return DTYPES[name], "asked for"
    size = parameters * 4
    if device.type == "cpu" and size < SMALL_BYTES:
        return torch.float32, f"on a CPU, {size / 1e6:.1f} MB of fp32 weights are under 1 GB"
    name = stored if stored in DTYPES else "bfloat16"
    source = "the checkpoint's own" if stored in DTYPES else "the checkpoint names none"
    return DTYPES[name], source


def choose(
    device: str | torch.device, dtype: str | torch.dtype, parameters: int, stored: str | None
) -> DeviceChoice:
    """Device and dtype together.

    Raises:
        DeviceError: either is not available.
    """
    place, why = choose_device(device)
    number, because = choose_dtype(dtype, place, parameters, stored)
    return DeviceChoice(place, number, why, because)


def widest(device: torch.device) -> torch.dtype:
    """The widest floats of a device: Metal has none of 64 bit."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(values: Tensor) -> Tensor:
    """The same numbers in the widest floats of their device."""
    return values.to(widest(values.device))


def total_bytes(device: torch.device) -> int:
    """All memory of a device."""
    if device.type == "cuda":
        total: int = torch.cuda.mem_get_info(device)[1]
        return total
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses now, as far as the system tells."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type == "mps":
        return max(0, total_bytes(device) - torch.mps.driver_allocated_memory())
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return total_bytes(device) // 2
