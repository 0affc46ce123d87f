"""Experts that stay on the host: what is copied and when, and that nothing else changes.

Bug of others, llama.cpp #24423: options to offload were parsed and dropped, and the memory was the
same with them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import dgemma.loading
from dgemma.engine.engine import Engine
from dgemma.errors import CheckpointError, InvalidRequest
from dgemma.loading import load_model, save_model
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.quant.offload import BUFFERS, ExpertStream, OffloadedExperts, offload, padded
from dgemma.types import Request
from dgemma.weights.budget import make_plan
from tests.support.layered import LAYOUTS, checkpoint, empty
from tests.support.movers import FakeMover
from tests.support.packed_files import outputs
from tests.support.weight_parts import weight_bytes, weight_parts

LAYERS = [0, 2, 3, 5]


def streamed(model: DiffusionGemma, layers: list[int]) -> tuple[FakeMover, ExpertStream]:
    """Take the experts of some layers off the device."""
    mover = FakeMover()
    return mover, offload(model, [f"layers.{layer}.experts" for layer in layers], mover)


def numbers_of(model: DiffusionGemma, layer: int) -> int:
    """Bytes of a layer's experts in a buffer."""
    inner = model.get_submodule(f"layers.{layer}.experts.inner")
    return sum(padded(part.nbytes) for _, part in weight_parts(inner))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits(tmp_path: Path, layout: str) -> None:
    """Experts of every kind; a use before its copy gives NaN, one of the wrong layer other bits."""
    path = checkpoint(tmp_path, layout)
    plain = load_model(path, device="cpu").model
    model = load_model(path, device="cpu").model
    mover, _ = streamed(model, LAYERS)
    for _ in range(2):
        for got, wanted in zip(outputs(model), outputs(plain), strict=True):
            assert torch.equal(got, wanted)
    assert mover.allocated == BUFFERS * max(numbers_of(model, layer) for layer in LAYERS)


def test_one_copy_for_each_layer_and_pass(tmp_path: Path) -> None:
    """In the order of the layers, each begun before the one ahead of it is used."""
    model = load_model(checkpoint(tmp_path, "nvfp4"), device="cpu").model
    mover, stream = streamed(model, LAYERS)
    order = {parts_first(stream, number): number for number in range(len(LAYERS))}
    outputs(model)  # three passes
    copies = [order[source.data_ptr()] for source in mover.sources]
    assert copies == [number % len(LAYERS) for number in range(3 * len(LAYERS) + BUFFERS)]
    assert mover.waited == mover.began[:-BUFFERS]


def parts_first(stream: ExpertStream, number: int) -> int:
    """Where the first part of a layer is on the host."""
    return next(iter(stream.layers[number].values())).data_ptr()


def test_canvases_share_a_copy(tmp_path: Path) -> None:
    """Four requests in a pass cost as many copies as one."""
    model = load_model(checkpoint(tmp_path, "bfloat16"), device="cpu").model.eval()
    mover, _ = streamed(model, LAYERS)
    engine = Engine(model)
    sampling = SamplingParams(max_tokens=8, max_steps=4, seed=0)
    asked = [Request(token_ids=(2, 5, first), params=sampling) for first in range(4)]
    running = [engine.submit(request) for request in asked]
    while engine.running:
        engine.step()
    assert all(event.output.token_ids for s in running for event in s if event.output)
    passes = engine.counters().passes
    assert len(mover.waited) == passes * len(LAYERS)
    assert 1 < passes < 4 * 4


def test_a_pass_that_breaks_off(tmp_path: Path) -> None:
    """The next pass begins with its own first layer, whatever was on its way."""
    path = checkpoint(tmp_path, "plain")
    wanted = outputs(load_model(path, device="cpu").model)
    model = load_model(path, device="cpu").model
    streamed(model, LAYERS)
    broken = model.get_submodule("layers.3").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        outputs(model)
    broken.remove()
    assert all(map(torch.equal, outputs(model), wanted))


def fail(*_: object) -> None:
    """A layer that cannot be computed."""
    raise RuntimeError("broken")


def on_device(model: DiffusionGemma, mover: FakeMover) -> int:
    """Bytes of weights and buffers there."""
    away = [m for m in model.modules() if isinstance(m, OffloadedExperts)]
    return weight_bytes(model) - sum(map(weight_bytes, away)) + mover.allocated


@pytest.mark.parametrize("layout", ["bfloat16", "nvfp4", "mixed"])
@pytest.mark.fault("Q 1")
def test_the_option_has_an_effect(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp #24423: with less memory fewer bytes are on the device, as many as planned."""
    path, mover = checkpoint(tmp_path, layout), FakeMover()
    monkeypatch.setattr(dgemma.loading, "mover_of", lambda device: mover)
    model, files = empty(path)
    dtype = torch.bfloat16 if layout == "bfloat16" else torch.float32
    whole = make_plan(model, files, dtype)
    before = load_model(path, device="cpu", dtype=dtype)
    assert before.plan is None and on_device(before.model, mover) == whole.weights
    sizes, away = [], []
    layer = sum(one.nbytes for one in whole.held if one.kind == "experts") // 6
    smaller = make_plan(model, files, dtype, budget=whole.total - 1, streams=True)
    least = smaller.total - smaller.cache + whole.cache
    for memory in (whole.total, least, least - layer, least - 2 * layer):
        mover.allocated = 0
        found = load_model(path, device="cpu", dtype=dtype, memory=memory)
        outputs(found.model)
        assert found.plan is not None and found.plan.total <= memory
        size = on_device(found.model, mover)
        assert size == found.plan.weights + found.plan.buffers
        sizes.append(size)
        away.append(len(found.plan.away))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert away[0] == 0 and away[-1] > BUFFERS


def test_what_cannot_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory on the host, and writing a model whose experts are there."""
    path, mover = checkpoint(tmp_path / "model", "bfloat16"), FakeMover()
    monkeypatch.setattr(dgemma.loading, "mover_of", lambda device: mover)
    model, files = empty(path)
    whole = make_plan(model, files, torch.float32)
    experts = sum(one.nbytes for one in whole.held if one.kind == "experts")
    memory = whole.total - experts // 2
    found = load_model(path, device="cpu", dtype="float32", memory=memory)
    kinds = Counter(type(layer.experts) for layer in found.model.layers)
    assert kinds[OffloadedExperts] > BUFFERS
    with pytest.raises(CheckpointError, match="memory= had them packed"):
        save_model(found.model, found.checkpoint, tmp_path / "copy")
    monkeypatch.setattr(dgemma.loading, "free_bytes", lambda device: 1000)
    with pytest.raises(InvalidRequest, match="host's memory, which has 0.00 MB free"):
        load_model(path, device="cpu", dtype="float32", memory=memory)
