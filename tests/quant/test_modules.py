"""The seam between packed files and kernels: choose, then prepare each weight once."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgemma.loading import load_model
from dgemma.quant import modules
from dgemma.quant.choice import PackedKernel
from dgemma.quant.packed import Packed
from tests.support.packed_files import CONFIG, outputs, plain_model, random_state, write
from tests.support.packing import affine, packed_state

SIZES = replace(CONFIG, hidden_size=128, intermediate_size=192, moe_intermediate_size=64)


def test_a_kernel_prepares_each_weight_once_and_the_file_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `prepare` makes is all that is kept: else weights would be in memory twice."""
    stored, wanted = packed_state(random_state(SIZES), lambda w: affine(w, 8, 32), experts="stacks")
    rule = {"quantization": {"bits": 8, "group_size": 32}}
    seen: list[weakref.ref[torch.Tensor]] = []

    def prepare(packed: Packed) -> torch.Tensor:
        seen.append(weakref.ref(packed.parts["codes"]))
        return packed.dequantise()

    def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w.T

    def experts(x, index, weight, gate_up, down):  # type: ignore[no-untyped-def]
        gate, up = torch.einsum("nd,erd->ner", x, gate_up).chunk(2, -1)
        act = torch.nn.functional.gelu(gate, approximate="tanh") * up
        mix = torch.zeros(len(x), len(down)).scatter(1, index, weight)
        return torch.einsum("nef,edf,ne->nd", act, down, mix)

    kernel = PackedKernel("whole", prepare, linear, experts)
    monkeypatch.setattr(modules, "choose_packed", lambda *_: (kernel, "a test"))
    path = write(tmp_path, stored, rule, SIZES)
    model = load_model(path, device="cpu", dtype="float32").model
    assert model.kernels[:2] == (("experts", "whole", "a test"), ("linear", "whole", "a test"))
    packed = [m for m in model.modules() if modules.keeps_packed(m)]
    assert len(seen) == sum(len(m.formats) for m in packed)  # type: ignore[arg-type]
    gc.collect()
    assert not any(ref() is not None for ref in seen)
    for got, right in zip(outputs(model), outputs(plain_model(wanted, SIZES)), strict=True):
        assert (got - right).abs().max() <= 2e-5 * right.abs().max()
