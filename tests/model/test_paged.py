"""The paged path: the same kernels and objects however many requests a forward holds."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dgemma.llm import load
from dgemma.model.batch import ForwardBatch, bucket
from dgemma.model.cache import Cache, Segment
from dgemma.model.transformer import DiffusionGemma
from tests.support.engines import tiny


def network(layers: int = 2, path: str = "paged") -> DiffusionGemma:
    """A random network with window 8 and canvas 8."""
    model = tiny(3, layers=layers)
    model.choose_kernels(torch.device("cpu"), torch.float32, attention=path)
    return model


def mixed(model: DiffusionGemma, count: int) -> tuple[Cache, list[Segment]]:
    """Requests in every phase and of many lengths: the first encodes and denoises at once."""
    width, canvas_length = model.config.hidden_size, model.config.canvas_length
    cache = model.new_cache(count, 242 + canvas_length)
    segments = []
    for number, row in enumerate(cache.rows):
        ids = torch.arange(3, 3 + 5 + 17 * number % 90) % 60
        if number % 3:  # encoded before: now it denoises, or encodes more
            half = Cache.__new__(Cache)
            half.memory, half.rows = cache.memory, [row]
            model.encode(ids[None], half)
        if number % 3 != 1:
            segments.append(row.segment(ids))
        if number % 3 != 2:
            done = len(ids) * (number % 3 == 0)
            soft = torch.full((canvas_length, width), 0.1) if number % 2 else None
            canvas = row.segment(torch.arange(canvas_length) % 40 + number, True, soft)
            segments.append(
                replace(canvas, position=canvas.position + done, stored=canvas.stored + done)
            )
    return cache, segments


def batch_of(model: DiffusionGemma, count: int) -> ForwardBatch:
    """A forward of so many requests."""
    cache, segments = mixed(model, count)
    return model.make_batch(segments, cache.memory)


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_it_gives_what_the_reference_gives(count: int) -> None:
    """A key of another request, a window by a block too many, or a row at the wrong place."""
    found: dict[str, list[Tensor]] = {}
    for path in ("reference", "paged"):
        model = network(path=path)
        batch = batch_of(model, count)
        found[path] = batch.split(model(batch))
    assert len(found["paged"]) == len(found["reference"]) > 0
    for ours, expected in zip(found["paged"], found["reference"], strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


def kernels(model: DiffusionGemma, count: int) -> Counter[str]:
    """How often each operation runs in a forward of so many requests and the making of its batch.

    Views run no kernel.
    """
    cache, segments = mixed(model, count)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model(model.make_batch(segments, cache.memory))
    names = [event.name.removeprefix("aten::") for event in found.events() or []]
    return Counter(name for name in names if name not in ("slice", "as_strided"))


def bundled(path: str) -> DiffusionGemma:
    """nano, whose batches are large enough for torch to take other ways than with tiny ones."""
    return load("nano", device="cpu", dtype="float32", attention=path).model


@torch.inference_mode()
@pytest.mark.parametrize("network", [network, pytest.param(bundled, marks=pytest.mark.model)])
def test_the_number_of_kernels_does_not_depend_on_the_requests(
    network: Callable[..., DiffusionGemma], count: Callable[[int, int], int]
) -> None:
    """A loop over requests in a layer makes a step of 16 requests wait for the host."""
    model = network(path="paged")
    kernels(model, 16)  # takes the memory that is kept
    one = kernels(model, 1)
    assert sum(one.values()) > 100
    for requests in (16, 2, 8)[: count(2, 3)]:
        found = kernels(model, requests)
        assert found - one == one - found == Counter(), f"{requests} requests"
    reference = network(path="reference")
    grown = sum(kernels(reference, 16).values()) / sum(kernels(reference, 1).values())
    assert grown > 1.3, "the reference path has such a loop: this count would not see one"


def objects(model: DiffusionGemma, count: int) -> int:
    """Objects that the garbage collector had to watch while a batch was made and run."""
    cache, segments = mixed(model, count)
    for _ in range(2):  # the first run makes what is kept
        gc.collect(0)  # it sets the count to zero; one of all that other tests left takes seconds
        gc.disable()
        before = gc.get_count()[0]
        batch = model.make_batch(segments, cache.memory)
        held = [model(batch), batch]
        made = gc.get_count()[0] - before
        gc.enable()
        del held, batch
    return made


@torch.inference_mode()
def test_objects_do_not_grow_with_layers_times_requests() -> None:
    """A view of each request in each layer costs more time than the kernels that it feeds."""
    found = []
    for _ in range(3):  # threads of other tests may make or drop some meanwhile
        few, many = (objects(network(k), 16) - objects(network(k), 1) for k in (6, 12))
        found.append((few, many))
        if abs(many - few) <= 4:
            break
    least = min(abs(many - few) for few, many in found)
    assert least <= 4, f"objects for 15 more requests, with 6 and 12 layers: {found}"


def test_few_sizes_of_batches() -> None:
    """Every size would be captured as a graph of its own; at most a quarter of one is wasted."""
    sizes = {bucket(count, 64) for count in range(1, 8193)}
    assert len(sizes) <= 4 * 8 and max(sizes) == 8192
    assert all(count <= bucket(count, 64) <= max(64, 1.25 * count) for count in range(1, 8193))


@torch.inference_mode()
def test_inputs_of_one_size_lie_at_one_place() -> None:
    """A captured graph reads the addresses that it saw."""
    model = network()
    seen: list[tuple[int, ...]] = []
    cache, segments = mixed(model, 4)
    for shift in range(3):
        moved = [replace(s, ids=(torch.as_tensor(s.ids) + shift) % 60) for s in segments]
        batch = model.make_batch(moved, cache.memory)
        assert batch.soft is not None
        at: Sequence[Tensor] = (batch.ids, batch.positions, batch.soft)
        seen.append(tuple(tensor.data_ptr() for tensor in at))
    assert len(set(seen)) == 1


@torch.inference_mode()
@pytest.mark.parametrize("path", ["reference", "paged"])
def test_embeddings_stand_in_place_of_ids(path: str) -> None:
    """Features of an image that are ignored, or put at another row of the batch."""
    model = network(path=path)
    ids = torch.tensor([5, 9, 11, 7])
    expected = model.encode(ids[None], model.new_cache(1, 64))[0]
    cache = model.new_cache(2, 64)
    before, row = (row.segment(ids) for row in cache.rows)
    given = replace(
        row, ids=torch.tensor([5, 1, 1, 7]), embeddings=((1, model.head.embed(ids[1:3])),)
    )
    batch = model.make_batch([before, given], cache.memory)
    torch.testing.assert_close(batch.split(model(batch))[1], expected, atol=1e-5, rtol=1e-5)
    plain = model.make_batch([before, replace(given, embeddings=())], cache.memory)
    assert (batch.split(model(plain))[1] - expected).abs().max() > 1e-3
