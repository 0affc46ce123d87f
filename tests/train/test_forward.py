"""Training's own forward passes against the model's: no leak, same numbers, gradients arrive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.train import loss
from dgemma.train.forward import Encoded, denoise, encode
from dgemma.train.loss import canvas_loss, objective

CANVAS = 4
PROMPT = 11
"""Longer than the window."""
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def tiny(seed: int = 0, window: int = 6) -> DiffusionGemma:
    """A random network; every norm and scalar is random too, so that none can be left out."""
    model = DiffusionGemma(
        ModelConfig(
            vocab_size=50, hidden_size=32, intermediate_size=24, moe_intermediate_size=8,
            num_experts=4, top_k_experts=2, num_attention_heads=4,
            layer_types=("sliding_attention", "full_attention", "sliding_attention",
                         "full_attention"),
            sliding=AttentionShape(head_dim=8, num_key_value_heads=2, rope_theta=1e4),
            full=AttentionShape(
                head_dim=16, num_key_value_heads=1, rope_theta=1e4, partial_rotary_factor=0.25
            ),
            sliding_window=window, max_position_embeddings=256, canvas_length=CANVAS,
        )
    )  # fmt: skip
    model.reset_parameters(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    """Random ids of the tiny network."""
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_model(model: DiffusionGemma, seen: Tensor, canvas: Tensor, soft: Tensor | None) -> Tensor:
    """One canvas [C] behind seen tokens [T], by the network's own cache."""
    cache = model.new_cache(1, 200)
    model.encode(seen[None], cache)
    return model.denoise(canvas[None], cache, None if soft is None else soft[None])[0]


@pytest.mark.parametrize("window", [3, 6, 11, 12, 64])
def test_encode(window: int) -> None:
    """The causal mask or the window of training is not that of the network."""
    model = tiny(window=window)
    ids = random_ids(2, 19)
    with torch.no_grad():
        theirs = encode(model, ids).hidden
        ours = model.encode(ids, model.new_cache(2, 64))
    torch.testing.assert_close(theirs, ours, **CLOSE)


@pytest.mark.parametrize("window", [3, 6, 11, 12, 64])
@pytest.mark.parametrize("with_soft", [False, True])
def test_denoise_of_two_blocks(window: int, with_soft: bool) -> None:
    """A canvas in training sees what it will not see, or lacks what it will, when it is used.

    Block 2 sees the prompt and block 1, never itself; windows are anchored at its start.
    """
    model = tiny(window=window)
    ids = random_ids(2, PROMPT + 2 * CANVAS)
    noisy = random_ids(4, CANVAS, seed=2)
    starts = torch.tensor([PROMPT, PROMPT, PROMPT + CANVAS, PROMPT + CANVAS])
    soft = torch.randn(4, CANVAS, 32, generator=torch.Generator().manual_seed(3))
    soft_in = soft if with_soft else None
    with torch.no_grad():
        made = denoise(model, noisy, encode(model, ids).stored, starts, False, soft_in)
    for i, start in enumerate(starts.tolist()):
        ours = by_model(model, ids[i % 2, :start], noisy[i], soft[i] if with_soft else None)
        torch.testing.assert_close(made[i], ours, **CLOSE)


@pytest.mark.parametrize("window", [6, 11, 12, 64])
def test_denoise_of_the_whole_prompt(window: int) -> None:
    """The short cut without a mask sees more than the window."""
    model = tiny(window=window)
    ids, noisy = random_ids(2, PROMPT), random_ids(4, CANVAS, seed=2)
    with torch.no_grad():
        stored = encode(model, ids).stored
        made = denoise(model, noisy, stored, torch.full((4,), PROMPT), True, None)
    for i in range(4):
        torch.testing.assert_close(made[i], by_model(model, ids[i % 2], noisy[i], None), **CLOSE)


def test_no_leak() -> None:
    """A block's result depends on its own clean tokens, on later ones, or on padding."""
    model = tiny()
    ids = random_ids(1, PROMPT + 3 * CANVAS)
    other = ids.clone()
    other[:, PROMPT + CANVAS :] = random_ids(1, 2 * CANVAS, seed=9)
    noisy = random_ids(2, CANVAS, seed=2)
    starts = torch.tensor([PROMPT, PROMPT + CANVAS])
    with torch.no_grad():
        a, b = (
            denoise(model, noisy, encode(model, x).stored, starts, False, None)
            for x in (ids, other)
        )
    assert not torch.equal(encode(model, ids).hidden, encode(model, other).hidden)
    torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_gradient_reaches_the_encoder() -> None:
    """Keys and values are cut off from the graph: the encode mode is never trained."""
    model = tiny()
    encoded = encode(model, random_ids(2, PROMPT))
    for pair in encoded.stored:
        for tensor in pair:
            tensor.retain_grad()
    loss = canvas_loss(
        model, encoded, random_ids(4, CANVAS), random_ids(4, CANVAS, seed=5),
        torch.full((4,), PROMPT), False,
    )  # fmt: skip
    torch.autograd.backward(loss)
    for pair in encoded.stored:
        for tensor in pair:
            assert tensor.grad is not None and tensor.grad.abs().max() > 0
    # The last layer's encode scalar only feeds hidden states that nobody reads here.
    scalars = [layer.encode_scalar.grad for layer in model.layers]
    assert all(grad is not None and grad.abs() > 0 for grad in scalars[:-1])


def test_half_is_self_conditioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal of the other half is noise or a projection of zero, not zero."""
    model, given = tiny(), []
    forward = model.self_conditioning.forward

    def watched(x: Tensor, soft: Tensor) -> Tensor:
        given.append(soft.detach())
        return forward(x, soft)

    monkeypatch.setattr(model.self_conditioning, "forward", watched)
    encoded = encode(model, random_ids(2, PROMPT))
    canvas_loss(
        model,
        encoded,
        random_ids(4, CANVAS),
        random_ids(4, CANVAS),
        torch.full((4,), PROMPT),
        False,
    )
    first, second = given
    assert first.shape[0] == 2 * CANVAS and not first.any()
    assert second[: 2 * CANVAS].any() and not second[2 * CANVAS :].any()
    assert not second.requires_grad


def test_what_is_closed_believes_in_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training shows a belief about pinned tokens that generation never gives: a guess of them."""
    model, given = tiny(), []
    forward = model.self_conditioning.forward

    def watched(x: Tensor, soft: Tensor) -> Tensor:
        given.append(soft.detach().view(-1, CANVAS, soft.shape[-1]))
        return forward(x, soft)

    monkeypatch.setattr(model.self_conditioning, "forward", watched)
    encoded, clean = encode(model, random_ids(2, PROMPT)), random_ids(4, CANVAS)
    starts = torch.full((4,), PROMPT)
    scored = torch.arange(CANVAS).expand(4, -1) % 2 == 0
    canvas_loss(model, encoded, random_ids(4, CANVAS, seed=5), clean, starts, False)
    canvas_loss(model, encoded, random_ids(4, CANVAS, seed=5), clean, starts, False, scored)
    guess, partly = given[1][:2], given[3][:2]
    assert torch.equal(partly[:, 0::2], guess[:, 0::2])
    assert torch.equal(partly[:, 1::2], model.head.embed(clean[:2, 1::2]))
    assert not torch.equal(partly, guess)


@pytest.mark.parametrize("partly", [False, True])
def test_a_conditioned_canvas_is_that_of_the_next_step(
    partly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The belief is of another canvas than `earlier`, or what is shown is not the surest of it."""
    model = tiny()
    canvases: list[Tensor] = []

    def watched(_model: DiffusionGemma, canvas: Tensor, *rest: Any) -> Tensor:
        canvases.append(canvas)
        return denoise(_model, canvas, *rest)

    monkeypatch.setattr(loss, "denoise", watched)
    encoded, clean = encode(model, random_ids(2, PROMPT)), random_ids(4, CANVAS)
    noise, earlier = ((clean + shift) % 50 for shift in (1, 2))
    kept = torch.arange(CANVAS)[None] < torch.tensor([0, 2, 3, CANVAS])[:, None]
    scored = (torch.arange(CANVAS) != 1).expand(4, -1) if partly else None
    noisy = torch.where(kept, clean, noise)
    starts = torch.full((4,), PROMPT)
    canvas_loss(model, encoded, noisy, clean, starts, False, scored, (earlier, noise))
    before, after = canvases
    assert torch.equal(before, earlier[:2]) and torch.equal(after[2:], noisy[2:])
    with torch.no_grad():
        logits = model.head.logits(denoise(model, before, encoded.stored, starts[:2], False, None))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for row in range(2):
        free = [i for i in range(CANVAS) if scored is None or scored[row, i]]
        count = int(kept[row, free].sum())
        surest = sorted(free, key=lambda i: float(entropy[row, i]))[:count]
        shown = {i for i in range(CANVAS) if after[row, i] == clean[row, i]}
        assert shown == {*surest, *(i for i in range(CANVAS) if i not in free)}
        assert torch.equal(after[row, surest], clean[row, surest])


def test_one_canvas_a_prompt() -> None:
    """With one canvas there is no half to condition, and an empty pass fails."""
    model = tiny()
    canvas, encoder = objective(
        model, random_ids(2, PROMPT), None, random_ids(2, CANVAS), random_ids(2, CANVAS),
        torch.full((2,), PROMPT), True,
    )  # fmt: skip
    assert torch.isfinite(canvas) and encoder == 0


def test_encoder_loss() -> None:
    """Tokens that are not scored (the prompt, padding) count."""
    model = tiny()
    ids = random_ids(1, PROMPT + CANVAS)
    encoder_targets = torch.zeros(1, PROMPT + CANVAS, dtype=torch.bool)
    encoder_targets[:, PROMPT:] = True
    _, loss = objective(
        model, ids, encoder_targets, random_ids(2, CANVAS), random_ids(2, CANVAS),
        torch.full((2,), PROMPT), False,
    )  # fmt: skip
    with torch.no_grad():
        hidden = model.encode(ids, model.new_cache(1, 64))
        logits = model.head.logits(hidden)[0, PROMPT - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, PROMPT:])
    torch.testing.assert_close(loss.detach(), expected, **CLOSE)
    assert isinstance(encode(model, ids), Encoded)
