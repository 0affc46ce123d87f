"""Requests over keys and values in 8 bits: the same tokens alone, in a batch and after a break."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.engine.engine import Engine
from dgemma.model.size import page_bytes, peak
from dgemma.types import PAGE, Request
from tests.support.engines import assert_same, last, request, run_preempted, tiny
from tests.support.nano import by_reference

SEEDS = range(2, 7)


def engine(cache_dtype: str = "fp8", attention: str = "reference", **options: Any) -> Engine:
    """On a random network whose second layer is a full one."""
    model = tiny(3)
    model.choose_kernels(model.device, torch.float32, attention=attention, cache_dtype=cache_dtype)
    return Engine(model, end_ids=(), **options)


def asked(seed: int) -> Request:
    """Prompts of many lengths, the later ones over a page's border, with one beginning."""
    ids = tuple(3 + (7 * k) % 50 for k in range(30 * seed))
    return replace(request(seed, max_tokens=20, max_steps=4), token_ids=ids)


def test_bytes_of_full_layers_alone() -> None:
    """A cache that is only called 8 bits, and a plan of memory that does not know it."""
    plain, packed = engine("auto"), engine()
    for one, full in ((plain, 4), (packed, 1)):
        sizes = {
            kind: buffer.element_size()
            for kind, buffer in zip(one.memory.layer_types, one.memory.buffers, strict=True)
        }
        assert sizes == {"sliding_attention": 4, "full_attention": full}
        held = sum(buffer.nbytes for buffer in one.memory.buffers)
        pages = {"full_attention": one.limits.pages + 1}
        pages["sliding_attention"] = one.memory.buffers[0].shape[2] // PAGE
        assert held == sum(pages[kind] * size for kind, size in one.page_bytes.items())
    half = engine("auto").model.to(torch.bfloat16)
    assert page_bytes(half.config, half.cache_dtypes)["full_attention"] == 2 * packed.page_bytes[
        "full_attention"
    ]  # fmt: skip


def test_the_same_budget_holds_more_tokens() -> None:
    """Pages counted at the old size waste what was saved."""
    budget = 40 * 1024
    plain, packed = (engine(name, cache_bytes=budget, max_running=64) for name in ("auto", "fp8"))
    assert packed.limits.pages > 1.5 * plain.limits.pages
    for one in (plain, packed):
        counts = {"full_attention": one.limits.pages}
        counts["sliding_attention"] = one.memory.filling["sliding_attention"] // PAGE
        assert sum(counts[kind] * size for kind, size in one.page_bytes.items()) <= budget


def test_the_prediction_counts_both_copies() -> None:
    """Codes are kept, and one layer's numbers at a time are beside them."""
    config = tiny(0, context=4096, layers=8).config
    plain = peak(config, torch.float32, 3000)
    packed = peak(config, torch.float32, 3000, cache_dtype="fp8")
    whole = page_bytes(config, {"full_attention": torch.float32,
                                "sliding_attention": torch.float32})["full_attention"]  # fmt: skip
    pages = -(-(3000 + config.canvas_length) // PAGE)
    assert plain.cache - packed.cache == pages * whole * 3 // 4
    assert packed.work - plain.work == pages * whole // 4


def test_tokens_of_the_reference_loop() -> None:
    """The engine alone, together, with other pieces of prompts, and from a prefix cache."""
    one, pieces = engine(), engine(chunk=17)
    made = [by_reference(one, asked(seed)) for seed in SEEDS]
    for seed, expected in zip(SEEDS, made, strict=True):
        assert_same(last(one.submit(asked(seed))), expected)
    streams = [one.submit(asked(seed)) for seed in SEEDS]
    for stream, expected in zip(streams, made, strict=True):
        assert_same(last(stream), expected)
    for seed, expected in zip(SEEDS, made, strict=True):
        assert_same(last(pieces.submit(asked(seed))), expected)
    shared = engine(share_prefix_cache=True)
    for seed, expected in zip(SEEDS, made, strict=True):
        assert_same(last(shared.submit(asked(seed))), expected)
    assert shared.counters().prefix_hit_tokens > 0
    other = by_reference(engine("auto"), asked(6))
    assert other.trace != made[-1].trace, "rounding shows: these tests compare what is rounded"


@pytest.mark.parametrize("every", [1, 3])
def test_preempted(every: int) -> None:
    """Keys that are encoded again after a preemption have other bits."""
    for seed in SEEDS:
        expected = by_reference(engine(), asked(seed))
        _, output = run_preempted(engine(), asked(seed), lambda number, _: number % 7 == every)
        assert_same(output, expected)


def test_a_race_copies_codes() -> None:
    """The pages of a fork begin with a copy of the last one of the prompt."""
    raced = replace(asked(3), params=asked(3).params.merged(request(1, race=3).params))
    first, second = (last(engine().submit(raced)) for _ in range(2))
    assert first.error is None and first.token_ids == second.token_ids


@torch.inference_mode()
def test_the_paged_path_agrees() -> None:
    """Codes at other places, or read as numbers of another layer."""
    found = []
    for attention in ("reference", "paged"):
        model = engine(attention=attention).model
        cache = model.new_cache(3, 200)
        prompts = torch.arange(3 * 90).view(3, 90) % 60
        hidden = model.encode(prompts, cache, [5, 70, 90])
        canvas = torch.arange(8).expand(3, 8)
        found.append((hidden, model.denoise(canvas, cache)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
