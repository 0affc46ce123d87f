"""The two modes of the network on training batches, with gradients through keys and values.

Clean tokens are encoded once; any number of noisy canvases then read those keys and values, each
only up to its own block. The batch brings its own attention paths; the network does not know that
it is being trained.
Source of the visibility rules: the training objective of DiffusionGemma (strict block order,
windows anchored at the start of a block).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.model.batch import AttentionPath, ForwardBatch
from dgemma.model.config import ModelConfig
from dgemma.model.layers import rotary_table
from dgemma.model.transformer import DiffusionGemma

KeyValues = tuple[Tensor, Tensor]  # each [B, Hkv, S, hd]


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention, scale 1.

    Args:
        q: [B, T, H, hd].
        k, v: [B, Hkv, S, hd].
        mask: bool, broadcastable to [B, 1, T, S] with T or 1 query rows; None: all seen.

    Returns:
        [B, T, H, hd].
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    folded = q.view(batch, length, kv_heads, group, width).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(batch, kv_heads, group * length, width)
    if mask is not None and mask.shape[-2] != 1:
        mask = mask.repeat(1, 1, group, 1)
    scores = folded @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    out = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    out = out.view(batch, kv_heads, group, length, width).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


class EncodePath:
    """Causal attention of right-padded rows; remembers keys and values of every layer."""

    def __init__(self, config: ModelConfig, batch: int, length: int, device: torch.device) -> None:
        self.shape = (batch, length)
        self.config = config
        self.stored: list[KeyValues] = []
        place = torch.arange(length, device=device)
        causal = place[None, :] <= place[:, None]
        near = place[None, :] > place[:, None] - config.sliding_window
        self.full = causal[None, None]
        self.sliding = (causal & near)[None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """See `AttentionPath`."""
        q, k, v = (x.view(*self.shape, *x.shape[1:]) for x in (q, k, v))
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        self.stored.append((k, v))
        sliding = self.config.layer_types[layer] == "sliding_attention"
        return _grouped(q, k, v, self.sliding if sliding else self.full).flatten(0, 1)


class DenoisePath:
    """Canvases that read stored keys below their own start; canvas i reads row i mod B."""

    def __init__(
        self,
        config: ModelConfig,
        stored: list[KeyValues],
        starts: Tensor,  # [M] tokens each canvas may see
        no_mask: bool,  # every canvas sees all that was encoded
        canvas: int,
    ) -> None:
        self.config = config
        self.stored = stored
        count = starts.shape[0]
        self.fold = count // stored[0][0].shape[0]
        self.shape = (count, canvas)
        self.masks: dict[str, Tensor | None] = {"full_attention": None, "sliding_attention": None}
        length = stored[0][0].shape[2]
        if not no_mask or length >= config.sliding_window:
            place = torch.arange(length, device=starts.device)[None, :]
            full = place < starts[:, None]
            own = torch.ones(count, canvas, dtype=torch.bool, device=starts.device)
            near = full & (place >= starts[:, None] - (config.sliding_window - 1))
            self.masks["full_attention"] = torch.cat((full, own), 1)[:, None, None]
            self.masks["sliding_attention"] = torch.cat((near, own), 1)[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """See `AttentionPath`."""
        q, k, v = (x.view(*self.shape, *x.shape[1:]) for x in (q, k, v))
        past_k, past_v = self.stored[layer]
        k = torch.cat((past_k.repeat(self.fold, 1, 1, 1), k.transpose(1, 2)), dim=2)
        v = torch.cat((past_v.repeat(self.fold, 1, 1, 1), v.transpose(1, 2)), dim=2)
        return _grouped(q, k, v, self.masks[self.config.layer_types[layer]]).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The result of `encode`: hidden states [B, S, D] and the keys and values of each layer."""

    hidden: Tensor
    stored: list[KeyValues]


def encode(model: DiffusionGemma, ids: Tensor) -> Encoded:
    """Causal pass over right-padded clean tokens [B, S]."""
    count, length = ids.shape
    path = EncodePath(model.config, count, length, ids.device)
    positions = torch.arange(length, device=ids.device).repeat(count)
    hidden = model(_batch(model, ids.flatten(), positions, path))
    return Encoded(hidden.view(count, length, -1), path.stored)


def _batch(
    model: DiffusionGemma, ids: Tensor, positions: Tensor, path: AttentionPath,
    soft: Tensor | None = None,
) -> ForwardBatch:  # fmt: skip
    """All rows in one mode: canvases have soft embeddings."""
    frequencies = model.frequencies().items()
    return ForwardBatch(
        ids=ids,
        positions=positions,
        denoise=torch.full((len(ids), 1), soft is not None, device=ids.device),
        soft=soft,
        rotary={kind: rotary_table(f, positions, model.dtype) for kind, f in frequencies},
        attention=path,
    )


def denoise(
    model: DiffusionGemma,
    canvas: Tensor,  # [M, C] noisy ids
    stored: list[KeyValues],
    starts: Tensor,  # [M] position of each canvas's first token
    no_mask: bool,  # every canvas sees all that was encoded: no mask is needed
    soft: Tensor | None,  # [M, C, D] or None for exactly zero
) -> Tensor:  # [M, C, D]
    """Bidirectional pass over noisy canvases; canvas i reads encoded row i mod B."""
    count, width = canvas.shape
    path = DenoisePath(model.config, stored, starts, no_mask, width)
    positions = (starts[:, None] + torch.arange(width, device=canvas.device)).flatten()
    shape = canvas.numel(), model.config.hidden_size
    soft = stored[0][0].new_zeros(shape) if soft is None else soft.flatten(0, 1)
    batch = _batch(model, canvas.flatten(), positions, path, soft)
    hidden: Tensor = model(batch)
    return hidden.view(count, width, -1)
