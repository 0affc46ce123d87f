"""The device mps, without an Apple machine: how it is chosen, and what it must not be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dgemma.device
from dgemma.device import choose_device, free_bytes, total_bytes
from dgemma.engine.engine import Engine
from dgemma.errors import DeviceError
from dgemma.loading import load_model
from dgemma.params import SamplingParams
from dgemma.quant.float4 import Float4
from dgemma.quant.float8 import Float8
from dgemma.quant.packed import Packed
from dgemma.types import CanvasControl, Request

METAL = torch.device("mps")


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch sees a Metal device with 24 GB, 4 of which are taken, and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24 * 10**9)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * 10**9)


@pytest.mark.usefixtures("apple")
def test_chosen_where_torch_sees_it() -> None:
    """A Mac would run on its CPU, with the memory of a CPU."""
    assert choose_device("auto") == (METAL, "Metal device found")
    assert choose_device("mps")[0] == METAL
    assert (total_bytes(METAL), free_bytes(METAL)) == (24 * 10**9, 20 * 10**9)


def test_cuda_comes_first(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are never there, but the order must not depend on that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert choose_device("auto")[0].type == "cuda"


def test_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes a CPU without a word."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch sees no Metal device; use cpu"):
        choose_device("mps")


@pytest.mark.model
@pytest.mark.usefixtures("apple")
def test_every_kernel_is_plain_torch() -> None:
    """A kernel for CUDA, or one that only a CPU has."""
    found = load_model("nano", device="auto", dtype="bfloat16", weights=False)
    assert found.choice.device == METAL
    kernels = {part: (name, why) for part, name, why in found.model.kernels}
    assert {part: name for part, (name, _) in kernels.items()} == {
        "experts": "dense", "head": "rows",
        "attention path": "reference", "attention kernel": "sdpa", "cache": "bfloat16",
    }  # fmt: skip
    assert kernels["attention path"][1] == "auto: on Metal"


class NoWideFloats(TorchDispatchMode):
    """Metal has no floats of 64 bit: an operation that makes some fails."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        assert all(value.dtype != torch.float64 for value in made), func
        return out


@pytest.mark.model
def test_no_wide_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canvases, pins, filters, decoding token by token and drafts, with the floats of Metal."""
    for module in ("dgemma.device", "dgemma.diffusion.sampler"):
        monkeypatch.setattr(f"{module}.widest", lambda device: torch.float32)
    engine = Engine(load_model("nano", device="cpu").model)
    small = SamplingParams(max_tokens=12, max_steps=3, seed=0)
    filters = SamplingParams(max_tokens=12, max_steps=3, seed=0, top_k=5, top_p=0.9, logprobs=2,
                             ignore_tail=True)  # fmt: skip
    asked = [
        Request(token_ids=(2, 5), params=small),
        Request(token_ids=(2, 5), params=filters),
        Request(token_ids=(2, 5), params=small, canvas=CanvasControl(ids=(9, -1), pinned=(0,))),
        Request(token_ids=(2, 5), params=SamplingParams(max_tokens=4), mode="autoregressive"),
        Request(token_ids=(2, 5), params=SamplingParams(max_tokens=4), mode="exact"),
    ]
    with NoWideFloats():
        streams = [engine.submit(request) for request in asked]
        while engine.running:
            engine.step()
    outputs = [event.output for stream in streams for event in stream if event.output]
    assert len(outputs) == len(asked) and not any(output.error for output in outputs)


def test_eight_bit_floats_are_kept_otherwise() -> None:
    """Metal has none: codes become bytes and scales bf16, and the numbers are the same bits."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127].view(torch.float8_e4m3fn).view(2, -1)
    pairs = torch.randint(256, (2, 32), dtype=torch.uint8)
    scale = (torch.rand(2, 4) * 9).to(torch.float8_e4m3fn)
    exponent = torch.tensor([[1, 127, 250, 100]] * 2, dtype=torch.uint8)
    cases = [
        Packed(Float8(), codes.shape[1], {"codes": codes, "scale": torch.rand(2, 1)}),
        Packed(Float4(16), 64, {"codes": pairs, "scale": scale, "outer": torch.rand(2, 1)}),
        Packed(Float4(16), 64, {"codes": pairs, "scale": exponent.view(torch.float8_e8m0fnu)}),
    ]
    for packed in cases:
        there = packed.fit("mps")
        assert not any("float8" in str(part.dtype) for part in there.parts.values())
        assert torch.equal(there.dequantise(), packed.dequantise())
        assert packed.fit("cuda") is packed


def test_the_widest_floats() -> None:
    """64 bit wherever they are: a decision must not depend on how a sum is split."""
    assert dgemma.device.widest(torch.device("cuda")) == torch.float64
    assert dgemma.device.widest(METAL) == torch.float32
