"""Packed modules in the places of plain ones: the rest of the program does not notice.

A network with them gives bit for bit what a plain one gives that holds the unpacked numbers. A path
that reads a plain weight by itself ends in an AttributeError here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dgemma.engine.engine import Engine
from dgemma.loading import load_model
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.types import CanvasControl, Output, Request
from tests.support.packed import packed_state, swap

SMALL = {"max_tokens": 60, "max_steps": 3, "canvas_length": 40}
REQUESTS = (
    Request(token_ids=(2, 5, 9), params=SamplingParams(seed=1, **SMALL)),
    Request(token_ids=(2, 5, 9), params=SamplingParams(seed=1, top_k=20, top_p=0.9, **SMALL)),
    Request(
        token_ids=(2, 7),
        params=SamplingParams(seed=2, logprobs=3, logprob_token_ids=(8, 9), **SMALL),
        canvas=CanvasControl(ids=(11, -1, 12), pinned=(0, 2)),
    ),
    Request(token_ids=(2, 6), params=SamplingParams(max_tokens=5), mode="autoregressive"),
    Request(token_ids=tuple(range(2, 30)), mode="score"),
)


@pytest.fixture(scope="module", params=[None, 5000], ids=["row by row", "streamed"])
def pair(request: pytest.FixtureRequest) -> tuple[DiffusionGemma, DiffusionGemma]:
    """A network with packed modules, and a plain one with the same numbers."""
    config = load_model("nano", device="cpu", weights=False).checkpoint.config
    size = request.param or config.vocab_size
    config = replace(config, vocab_size=size, layer_types=config.layer_types[-2:])
    plain, packed = DiffusionGemma(config), DiffusionGemma(config)
    plain.reset_parameters(3)
    swapped = swap(packed)
    wanted = {"embed", "layers.0.experts", "layers.1.attention.k_proj", "self_conditioning.up_proj"}
    assert wanted <= set(swapped)
    codes, unpacked = packed_state(plain.state_dict(), swapped)
    packed.load_state_dict(codes)
    plain.load_state_dict(unpacked)
    for model in (packed, plain):
        model.choose_kernels(torch.device("cpu"), torch.float32)
    return packed.eval(), plain.eval()


def answers(model: DiffusionGemma) -> list[Output]:
    """Of all requests, side by side."""
    engine = Engine(model)
    streams = [engine.submit(request) for request in REQUESTS]
    while engine.running:
        engine.step()
    outputs = [event.output for stream in streams for event in stream if event.output]
    assert not any(output.error for output in outputs)
    return outputs


@pytest.mark.fault("Q 2")
def test_every_use_of_a_packed_network(pair: tuple[DiffusionGemma, DiffusionGemma]) -> None:
    """Lookup, projections, experts, head, soft embedding, chosen logits, pinned positions, filters
    and the autoregressive mode: the same tokens, and the same bits of every log-probability."""
    packed, plain = pair
    assert packed.head.kernel == plain.head.kernel
    for got, wanted in zip(answers(packed), answers(plain), strict=True):
        assert (got.token_ids, got.scores) == (wanted.token_ids, wanted.scores)
        assert got.token_ids or got.scores


@torch.no_grad()
def test_hidden_states_are_the_same_bits(pair: tuple[DiffusionGemma, DiffusionGemma]) -> None:
    """Both modes, with a belief to take in."""
    prompt, canvas = torch.arange(3, 40)[None], torch.arange(50, 90)[None]
    found = []
    for model in pair:
        cache = model.new_cache(1, 200)
        encoded = model.encode(prompt, cache)
        logits = model.head.logits(model.denoise(canvas, cache))
        again = model.denoise(canvas, cache, model.head.soft_embedding(logits / 0.6))
        found.append((encoded, logits, again))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_experts_say_which_kernel_they_took(
    pair: tuple[DiffusionGemma, DiffusionGemma],
) -> None:
    """A packed module chooses for itself, once, and `kernels` has its own reason."""
    packed, plain = pair
    assert packed.kernels[0][2] == f"{plain.kernels[0][2]}; unpacked"
    assert packed.kernels[1:] == plain.kernels[1:]
