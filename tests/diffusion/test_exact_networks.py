"""The exact mode on real networks: token for token the answer of decoding token by token."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgemma.diffusion.autoregress import autoregress
from dgemma.diffusion.canvas import CanvasSpec, Generation
from dgemma.diffusion.draft_policy import FIRST_DRAFT, DraftPolicy
from dgemma.diffusion.exact import speculate
from dgemma.diffusion.schedule import Schedule
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import RELEASED, SamplingParams
from dgemma.tasks import TASKS, make_example
from tests.support.engines import tiny
from tests.support.nano import nano
from tests.support.speculation import NEVER, sure

LIMIT = 192


def plain(
    model: DiffusionGemma, prompt: list[int], params: SamplingParams, spec: CanvasSpec
) -> Generation:
    cache = model.new_cache(1, len(prompt) + LIMIT + spec.length)
    return autoregress(prompt, params, spec, lambda i: model.encode(i, cache), model.head.greedy)


def drafted(
    model: DiffusionGemma, prompt: list[int], params: SamplingParams, spec: CanvasSpec,
    policy: DraftPolicy = FIRST_DRAFT, predict: Callable[..., Tensor] | None = None,
) -> Generation:  # fmt: skip
    cache = model.new_cache(1, len(prompt) + LIMIT + spec.length)
    row = cache.rows[0]

    def denoise(ids: Tensor, soft: Tensor | None) -> Tensor:
        return predict(row.stored) if predict else model.denoise(ids, cache, soft)

    return speculate(
        prompt, params, spec, lambda ids: model.encode(ids, cache), row.truncate, denoise,
        model.head, Schedule.of(RELEASED), policy,
    )  # fmt: skip


@pytest.mark.model
@pytest.mark.slow
@torch.inference_mode()
def test_nano_writes_what_it_writes_token_by_token(
    count: Callable[[int, int], int], record: Callable[..., None]
) -> None:
    """All tasks: keys of a rejected draft that stay, positions, a policy that costs passes."""
    llm, many = nano(), count(1, 143)
    spec, params = llm.engine.spec, SamplingParams(max_tokens=LIMIT)
    for task in TASKS:
        passes = {"plain": 0, "exact": 0}
        for number in range(many):
            example = make_example(task, "heldout", 5, number)
            thinking = example.thinking is not None
            ids = llm.chat_ids(list(example.messages), list(example.tools) or None, thinking)
            wanted = plain(llm.model, ids, params, spec)
            made = drafted(llm.model, ids, params, spec)
            assert (made.token_ids, made.finish_reason) == (wanted.token_ids, wanted.finish_reason)
            passes["plain"] += wanted.steps[0]
            passes["exact"] += made.steps[0]
        record(f"exact mode, {task}: passes of {passes['plain'] / many:.1f}",
               passes["exact"] / many)  # fmt: skip
        limit = {"json": 0.2}.get(task, 1.1)
        assert passes["exact"] <= limit * passes["plain"]


@pytest.mark.slow
@torch.inference_mode()
def test_random_weights(count: Callable[[int, int], int]) -> None:
    """A random network says nothing of what it says next, so each wrong key shows.

    Its own drafts are noise; these ones are its answer with some tokens exchanged.
    """
    draw, kept = random.Random(1), 0
    for number in range(count(8, 200)):
        model = tiny(number % 7, context=512)
        spec = CanvasSpec(length=8, vocab_size=64, context_length=256, end_ids=(1,))
        prompt = [draw.randrange(2, 64) for _ in range(draw.choice((1, 9, 63, 64, 65)))]
        params = SamplingParams(max_tokens=40)
        wanted = plain(model, prompt, params, spec)
        share, table = draw.choice((0.0, 0.1, 0.4)), model.embed.weight

        def predict(stored: int) -> Tensor:
            ids = [*wanted.token_ids, *[0] * 99][stored - len(prompt) :][: spec.length]  # noqa: B023
            rows = torch.tensor([i if draw.random() >= share else (i + 1) % 64 for i in ids])  # noqa: B023
            return (9 * table[rows])[None]  # noqa: B023

        made = drafted(model, prompt, params, spec, predict=predict)
        assert (made.token_ids, made.finish_reason) == (wanted.token_ids, wanted.finish_reason)
        own = drafted(model, prompt, params, spec)
        assert (own.token_ids, own.finish_reason) == (wanted.token_ids, wanted.finish_reason)
        kept += made.steps[0] < 0.8 * wanted.steps[0]
    assert kept >= 4, "too few drafts were accepted to show anything"


@torch.inference_mode()
def test_drawn_tokens_of_random_weights() -> None:
    """The number of a token belongs to its position, also on a network."""
    model, params = tiny(3, context=512), SamplingParams(max_tokens=12, temperature=0.8, seed=5)
    spec = CanvasSpec(length=8, vocab_size=64, context_length=256, end_ids=())
    alone = drafted(model, [4, 5, 6], params, spec, NEVER)

    def predict(stored: int) -> Tensor:
        ids = [*alone.token_ids, *[0] * 9][stored - 3 :][: spec.length]
        return sure(ids, 64, 1.0)[None] @ (9 * model.embed.weight)

    made = drafted(model, [4, 5, 6], params, spec, predict=predict)
    assert made.token_ids == alone.token_ids and made.steps[0] < alone.steps[0]
    assert alone.token_ids != plain(model, [4, 5, 6], SamplingParams(max_tokens=12), spec).token_ids


@pytest.mark.slow
@torch.inference_mode()
def test_a_reading_that_is_taken_back() -> None:
    """Rejected keys in the ring of a sliding layer write over keys that are still needed."""
    model = tiny(2, context=4096)
    ids = torch.arange(2400)[None] * 7 % 61 + 2
    caches = [model.new_cache(1, 4096) for _ in range(2)]
    ring = len({*caches[0].rows[0].sliding}) * 64
    assert ring < 2300
    for low in (ring - 40, ring + 3):  # the reading passes the end of the ring, or lies behind it
        rows = [cache.rows[0] for cache in caches]
        for cache, row in zip(caches, rows, strict=True):
            model.encode(ids[:, row.stored : low], cache)
        model.encode(ids[:, :100].flip(1), caches[0])
        rows[0].truncate(100)
        assert rows[0].length == rows[0].stored == low
        found = [model.encode(ids[:, low : low + 9], cache) for cache in caches]
        assert torch.equal(*found)
