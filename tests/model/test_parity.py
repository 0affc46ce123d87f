"""The network against `transformers` 5.17, on random weights.

Random norms, router scales and layer scalars tell apart what starts at one. The oracle runs eager
with a dynamic cache. What is compared is the largest difference over the largest logit.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.kernels.experts import experts_sparse
from dgemma.model.attention import ReferenceAttention
from dgemma.model.transformer import DiffusionGemma
from tests.support.oracle import tiny_pair

pytestmark = pytest.mark.oracle

LIMIT = 2e-5
S, F = "sliding_attention", "full_attention"

# (sizes beside the helper's own, prompt length): one thing at a time, then together.
CONFIGS: list[tuple[dict[str, Any], int]] = [
    ({}, 5),  # shorter than the window
    ({}, 15),  # one off the window
    ({}, 16),
    ({}, 17),
    ({}, 100),  # far longer
    ({"layer_types": (F,)}, 9),
    ({"layer_types": (F, F)}, 40),
    ({"layer_types": (S, F, S, F)}, 40),
    ({"layer_types": (S,) * 5 + (F,)}, 33),
    ({"num_attention_heads": 8, "num_key_value_heads": 8}, 20),
    ({"num_attention_heads": 2, "num_key_value_heads": 1}, 20),
    ({"num_global_key_value_heads": 4}, 20),
    ({"head_dim": 8, "global_head_dim": 64}, 20),
    ({"num_experts": 1, "top_k_experts": 1}, 20),
    ({"num_experts": 4, "top_k_experts": 4}, 20),
    ({"num_experts": 64, "top_k_experts": 8, "moe_intermediate_size": 32}, 20),  # the sparse way
    ({"canvas_length": 1}, 20),
    ({"canvas_length": 64, "sliding_window": 8}, 30),
    ({"canvas_length": 256, "sliding_window": 64}, 63),
    ({"sliding_window": 64}, 65),
    ({"sliding_window": 32, "hidden_size": 96, "intermediate_size": 80}, 200),
    ({"vocab_size": 1000, "num_experts": 16}, 24),
]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the scale."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def draw(seed: int, shape: tuple[int, ...], high: int = 290) -> Tensor:
    """Ids that are no image placeholder."""
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sizes", "length"), CONFIGS)
@torch.no_grad()
def test_fp32_logits_equal_the_oracles(sizes: dict[str, Any], length: int, record: Any) -> None:
    """Any wrong norm, scale, window, rotary, expert order or mode shows as far more than 2e-5."""
    theirs, ours = tiny_pair(length, **sizes)
    width = ours.config.canvas_length
    prompt, canvas = draw(1, (2, length)), draw(2, (2, width))
    first = theirs(input_ids=prompt, decoder_input_ids=canvas)
    second = theirs(
        input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=first.logits
    )
    cache = ours.new_cache(2, 4096)
    hidden = ours.encode(prompt, cache)
    soft = ours.head.soft_embedding(first.logits)
    differences = (
        relative(hidden, first.encoder_last_hidden_state),
        relative(ours.head.logits(ours.denoise(canvas, cache)), first.logits),
        relative(ours.head.logits(ours.denoise(canvas, cache, soft)), second.logits),
    )
    record("fp32: largest difference / scale, a configuration", max(differences), "<= 2e-5")
    assert max(differences) <= LIMIT


@pytest.mark.parametrize("chunk", [1, 7, 15, 16, 17, 50])
@torch.no_grad()
def test_chunked_prefill_gives_the_same(chunk: int) -> None:
    """A window counted from the chunk's start, or keys dropped too early, would show here."""
    theirs, ours = tiny_pair(3)
    prompt, canvas = draw(3, (1, 100)), draw(4, (1, 8))
    expected = theirs(input_ids=prompt, decoder_input_ids=canvas)
    cache = ours.new_cache(1, 200)
    pieces = [ours.encode(piece, cache) for piece in torch.split(prompt, chunk, 1)]
    assert relative(torch.cat(pieces, 1), expected.encoder_last_hidden_state) <= LIMIT
    assert relative(ours.head.logits(ours.denoise(canvas, cache)), expected.logits) <= LIMIT


@pytest.mark.parametrize("length", [3, 16, 40])
@torch.no_grad()
def test_positions_near_the_end_of_the_context(length: int) -> None:
    """Rotary angles in 16 bit, or counted from the chunk's start, are far off near 262,143."""
    theirs, ours = tiny_pair(5, max_position_embeddings=262_144)
    first = 262_144 - length - 8
    prompt, canvas = draw(5, (1, length)), draw(6, (1, 8))
    places = torch.arange(first, first + length)[None]
    expected = theirs(
        input_ids=prompt,
        decoder_input_ids=canvas,
        position_ids=places,
        decoder_position_ids=torch.arange(first + length, 262_144)[None],
    )
    cache = ours.new_cache(1, 262_144)
    cache.rows[0].length = first  # as if that much had gone before, out of sight
    hidden = ours.encode(prompt, cache)
    assert relative(hidden, expected.encoder_last_hidden_state) <= LIMIT
    assert relative(ours.head.logits(ours.denoise(canvas, cache)), expected.logits) <= LIMIT


@torch.no_grad()
def test_mixed_lengths_give_the_bits_of_each_row_alone() -> None:
    """Padded keys, shared masks or products over all rows would leak between neighbours."""
    _, ours = tiny_pair(7)
    lengths = [1, 2, 3, 15, 16, 17, 40]
    prompt, canvas = draw(7, (len(lengths), 40)), draw(8, (len(lengths), 8))
    together = ours.new_cache(len(lengths), 100)
    hidden = ours.encode(prompt, together, lengths)
    logits = ours.head.logits(ours.denoise(canvas, together))
    for row, length in enumerate(lengths):
        alone = ours.new_cache(1, 100)
        own = ours.encode(prompt[row : row + 1, :length], alone)
        assert torch.equal(hidden[row, :length], own[0])
        assert torch.equal(
            logits[row], ours.head.logits(ours.denoise(canvas[row : row + 1], alone))[0]
        )
        assert not hidden[row, length:].any()


@torch.no_grad()
def test_denoising_leaves_the_cache_as_it_was() -> None:
    """The canvas is laid behind the cached keys; a second look must not see the first one."""
    _, ours = tiny_pair(9)
    cache = ours.new_cache(1, 100)
    ours.encode(draw(9, (1, 30)), cache)
    canvas, other = draw(10, (1, 8)), draw(11, (1, 8))
    before = ours.denoise(canvas, cache)
    ours.denoise(other, cache)
    assert torch.equal(before, ours.denoise(canvas, cache))
    assert [row.length for row in cache.rows] == [30]


@torch.no_grad()
def test_sliding_layers_keep_only_the_window() -> None:
    """Otherwise 256K tokens would cost 25 times the memory they should."""
    theirs, ours = tiny_pair(11)
    cache, more = ours.new_cache(1, 4096), ours.new_cache(1, 3200)
    prompt, canvas = draw(12, (1, 3000)), draw(13, (1, 8))
    for piece in torch.split(prompt, 64, 1):
        ours.encode(piece, cache)
    sliding, full = cache.memory.buffers[0], cache.memory.buffers[2]
    assert sliding.shape == more.memory.buffers[0].shape
    assert sliding.shape[2] < 3000 < full.shape[2]  # so its pages were used again
    assert cache.rows[0].stored == 3000
    expected = theirs(input_ids=prompt, decoder_input_ids=canvas)
    assert relative(ours.head.logits(ours.denoise(canvas, cache)), expected.logits) <= LIMIT


@torch.no_grad()
def test_a_canvas_sees_the_last_window_of_keys_from_every_position() -> None:
    """Trap 1: a window per query would hide the oldest of the 15 keys from late positions."""
    _, ours = tiny_pair(13, layer_types=(S, F), sliding_window=16)
    canvas = draw(13, (1, 8))
    prompt = draw(14, (1, 40))
    seen = []
    for place in range(40):
        changed = prompt.clone()
        changed[0, place] = changed[0, place] % 280 + 1
        keys = []
        for tokens in (prompt, changed):
            cache = ours.new_cache(1, 100)
            ours.encode(tokens, cache)
            batch = ours.make_batch([cache.rows[0].segment(canvas[0], True)], cache.memory)
            (place,) = batch.pages[S]
            keys.append(cache.memory.buffers[0][0, :, place.seen][:, :-8].clone())
        seen.append(keys[0].shape[1] == 15 and not torch.equal(*keys))
    assert seen == [False] * 25 + [True] * 15
    assert torch.isfinite(ours.denoise(canvas, cache)).all()


@torch.no_grad()
def test_no_signal_is_not_the_softmax_of_zero_logits() -> None:
    """Trap 2: the mean embedding in place of zero, or a skipped post-norm, at the first step."""
    _, ours = tiny_pair(15)
    cache = ours.new_cache(1, 100)
    ours.encode(draw(15, (1, 20)), cache)
    canvas = draw(16, (1, 8))
    none = ours.denoise(canvas, cache)
    zero = ours.denoise(canvas, cache, torch.zeros(1, 8, 64))
    mean = ours.denoise(canvas, cache, ours.head.soft_embedding(torch.zeros(1, 8, 300)))
    assert torch.equal(none, zero)
    assert (none - mean).abs().max() > 0.1


@torch.no_grad()
def test_an_uncovered_image_token_reads_as_padding() -> None:
    """The oracle replaces placeholders without features by id 0."""
    theirs, ours = tiny_pair(17)
    prompt = draw(17, (1, 12))
    padded = prompt.clone()
    prompt[0, 5], padded[0, 5] = 298, 0
    first = ours.encode(prompt, ours.new_cache(1, 50))
    assert torch.equal(first, ours.encode(padded, ours.new_cache(1, 50)))
    assert theirs.config.image_token_id == ours.config.image_token_id == 298


def in_bf16(model: Any) -> Any:
    """Weights rounded, the oracle's rotary table kept in fp32 as loading in bf16 keeps it."""
    kept = {n: b.clone() for n, b in model.named_buffers() if "inv_freq" in n}
    model = model.to(torch.bfloat16)
    for name, value in kept.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)
    return model


def bf16_logits(seed: int, *, reference: bool, **sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of ours and theirs in bf16, and of ours in fp32 on the same rounded weights."""
    theirs, ours = tiny_pair(seed, **sizes)
    prompt, canvas = draw(seed, (1, 24)), draw(seed + 100, (1, 8))
    theirs.set_experts_implementation("eager")
    in_bf16(theirs)
    exact = DiffusionGemma(ours.config)
    exact.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in ours.state_dict().items()})
    ours.to(torch.bfloat16)
    ours.choose_kernels(torch.device("cpu"), torch.bfloat16)
    if reference:
        ours.attention_path = ReferenceAttention(ours.config, "plain")
        for layer in ours.layers:
            layer.experts.kernel = experts_sparse
    out = []
    for model in (ours, exact):
        cache = model.new_cache(1, 64)
        model.encode(prompt, cache)
        out.append(model.head.logits(model.denoise(canvas, cache)))
    return out[0], theirs(input_ids=prompt, decoder_input_ids=canvas).logits.float(), out[1]


@pytest.mark.parametrize("sizes", [{}, {"num_experts": 4, "top_k_experts": 4}])
@torch.no_grad()
def test_bf16_is_the_oracles_bit_for_bit(sizes: dict[str, Any]) -> None:
    """One rounding in another place (embedding scale, angles, router weights) would show."""
    for seed in range(3):
        ours, theirs, _ = bf16_logits(seed, reference=True, **sizes)
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_fast_kernels_are_as_near_to_fp32_as_the_oracle(record: Any) -> None:
    """Random routers flip under rounding, so distances to fp32 are compared, over 20 seeds."""
    runs = [bf16_logits(seed, reference=False) for seed in range(20)]
    distances = [(relative(o, e), relative(t, e)) for o, t, e in runs]
    ours, theirs = (median(column) for column in zip(*distances, strict=True))
    record("bf16 distance to fp32, ours / theirs", ours / theirs, "<= 1.1")
    assert ours <= 1.1 * theirs
