"""The objective: cross-entropy of the whole canvas, plus next-token cross-entropy of the encoder.

Half of the canvases are self-conditioned with the belief of a first pass without gradient; for the
others the soft embedding is exactly zero. All canvas positions count, clean ones too, with no
weight on the noise level; gradients flow from the denoiser into the encoder's keys and values.
Knows nothing about data or optimisers. Source: DiffusionGemma technical report (arXiv 2608.00146),
eq. 13, and `docs/training.md`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.model.transformer import DiffusionGemma
from dgemma.train.forward import Encoded, denoise, encode

HOLE_WEIGHT = 0.5
"""Of what is open on a canvas that is mostly clean, beside a whole canvas."""


def canvas_loss(
    model: DiffusionGemma,
    encoded: Encoded,
    noisy: Tensor,  # [M, C]
    clean: Tensor,  # [M, C]
    starts: Tensor,  # [M]
    no_mask: bool,
    scored: Tensor | None = None,  # bool [M, C]
    two_steps: tuple[Tensor, Tensor] | None = None,  # [M, C] twice: `Noised.earlier` and `.noise`
) -> Tensor:
    """Mean cross-entropy of M canvases; the first half of them is self-conditioned.

    With `two_steps`, the belief comes from the earlier canvas, and the conditioned one keeps as
    many tokens as `noisy`, but those that the belief is surest of, between the noise: what a step
    of the sampler leaves to the next. Without, the belief comes from `noisy` itself, as in the
    released recipe.

    Where a canvas is open in parts, those parts alone count, with the weight of half a canvas
    however small they are; the belief about the rest of it is its own tokens, as when they are
    pinned.
    """
    batch = encoded.hidden.shape[0]
    half = noisy.shape[0] // batch // 2 * batch
    soft = None
    if half:
        with torch.no_grad():
            stored = [(k.detach(), v.detach()) for k, v in encoded.stored]
            before = (noisy if two_steps is None else two_steps[0])[:half]
            logits = model.head.logits(denoise(model, before, stored, starts[:half], no_mask, None))
            soft = model.head.soft_embedding(logits)
            free = None if scored is None else scored[:half]
            if free is not None:
                held = model.head.embed(clean[:half])
                soft = torch.where(free[:, :, None], soft, held.to(soft.dtype))
            if two_steps is not None:
                kept, noise = noisy[:half] == clean[:half], two_steps[1][:half]
                shown = torch.where(_surest(logits, kept, free), clean[:half], noise)
                noisy = torch.cat((shown, noisy[half:]))
            soft = torch.cat((soft, soft.new_zeros(noisy.shape[0] - half, *soft.shape[1:])))
    hidden = denoise(model, noisy, encoded.stored, starts, no_mask, soft)
    if scored is None:
        return F.cross_entropy(model.head.logits(hidden).flatten(0, 1), clean.flatten())
    losses = F.cross_entropy(model.head.logits(hidden).transpose(1, 2), clean, reduction="none")
    share = scored.float().mean(-1)
    weight = torch.where(share < 1, HOLE_WEIGHT / share.clamp(min=1e-6), share)
    return (losses * scored * weight[:, None]).mean()


def _surest(logits: Tensor, kept: Tensor, free: Tensor | None) -> Tensor:
    """Bool [M, C]: as many positions as are kept, those of least entropy; and all closed ones."""
    log = logits.log_softmax(-1, dtype=torch.float32)
    entropy = -(log.exp() * log).sum(-1)
    if free is not None:
        entropy, kept = entropy.masked_fill(~free, torch.inf), kept & free
    rank = entropy.argsort(-1).argsort(-1)
    sure = rank < kept.sum(-1, keepdim=True)
    return sure if free is None else sure | ~free


def next_token_loss(
    model: DiffusionGemma, hidden: Tensor, ids: Tensor, encoder_targets: Tensor
) -> Tensor:
    """Mean cross-entropy of the tokens whose target is scored: [B, S, D], [B, S], bool [B, S]."""
    logits = model.head.logits(hidden[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weight = encoder_targets[:, 1:].to(losses.dtype)
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def objective(
    model: DiffusionGemma,
    ids: Tensor,  # [B, S]
    encoder_targets: Tensor
    | None,  # [B, S] tokens the encoder shall predict; None: no encoder loss
    noisy: Tensor,
    clean: Tensor,
    starts: Tensor,
    no_mask: bool,
    scored: Tensor | None = None,
    two_steps: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(canvas loss, encoder loss) of one batch; the latter is zero where nothing is scored."""
    encoded = encode(model, ids)
    canvas = canvas_loss(model, encoded, noisy, clean, starts, no_mask, scored, two_steps)
    if encoder_targets is None:
        return canvas, canvas.new_zeros(())
    return canvas, next_token_loss(model, encoded.hidden, ids, encoder_targets)
