"""The choice of device and dtype: told with its reason, never a silent fallback."""

from __future__ import annotations

import pytest
import torch

from dgemma.device import choose, choose_device, choose_dtype
from dgemma.errors import DeviceError

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["abacus", "meta", "cpu:x", ""])
def test_unknown_device(device: str) -> None:
    """An unknown device falls back to another, or raises what only torch understands."""
    with pytest.raises(DeviceError, match="use auto, cpu, cuda or mps"):
        choose_device(device)


def test_absent_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA that is asked for and absent becomes a CPU without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="use cpu"):
        choose_device("cuda")
    assert choose_device("auto") == (CPU, "no CUDA device found")


def test_dtype() -> None:
    """A large model runs in fp32 on a CPU, or a small one in bf16."""
    assert choose_dtype("auto", CPU, 249_999_999, "bfloat16")[0] == torch.float32
    assert choose_dtype("auto", CPU, 250_000_000, "bfloat16")[0] == torch.bfloat16
    assert choose_dtype("auto", torch.device("cuda"), 10, "float16")[0] == torch.float16
    assert choose_dtype("auto", torch.device("cuda"), 10, "U8")[0] == torch.bfloat16
    assert choose_dtype("float16", CPU, 10, None) == (torch.float16, "asked for")
    with pytest.raises(DeviceError, match="float32"):
        choose_dtype("int3", CPU, 10, None)


@pytest.mark.fault("N 40")
def test_other_names() -> None:
    """Torch's own dtypes and devices, and the short names, are what people write first."""
    for name in ("bf16", "torch.bfloat16", torch.bfloat16):
        assert choose_dtype(name, CPU, 10, None)[0] is torch.bfloat16
    assert choose_dtype("fp16", CPU, 10, None)[0] is torch.float16
    assert choose_dtype("fp32", CPU, 10, None)[0] is torch.float32
    assert choose_device(CPU)[0] == CPU
    for wrong in (torch.int8, None, 5):
        with pytest.raises(DeviceError, match="use auto, float32"):
            choose_dtype(wrong, CPU, 10, None)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="use auto, cpu"):
        choose_device(None)  # type: ignore[arg-type]


def test_reasons() -> None:
    """A choice without its reason."""
    choice = choose("cpu", "auto", 10, None)
    assert choice.device == CPU and choice.device_reason and choice.dtype_reason
