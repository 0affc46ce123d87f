"""DiffusionGemma: one set of weights run in two ways.

    encode   token-causal over prompt and finished canvases; fills the cache
    denoise  bidirectional over a canvas; reads the cache, never changes it

Both are one forward over packed rows: `run` takes the tokens of any number of requests, each in
either mode, as flat `[N, D]` rows. Knows nothing about sampling, text or files.
Source: DiffusionGemma in `transformers` 5.17 (`modeling_diffusion_gemma.py`), the oracle of the
parity tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention import choose_attention
from dgemma.kernels.head import Head
from dgemma.model.attention import Attention, AttentionContext, AttentionSpan, CachedContext
from dgemma.model.cache import Cache, RowView
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.layers import (
    Embedding,
    Experts,
    GatedMLP,
    RMSNorm,
    Router,
    SelfConditioning,
    rotary_frequencies,
    rotary_table,
)

Part = tuple[RowView, Tensor, bool, Tensor | None]
"""A row's share of a forward: its cache, ids [T], whether to denoise them, and for denoising the
soft embedding [T, D] of the previous step, or None at the first (then it is exactly zero)."""

ROWS = 64
"""In fp32 on a CPU a forward is filled up to a multiple of this many rows."""

PREFILL_CHUNK = 2048
"""`encode` runs longer inputs in pieces of this many tokens, so activations stay small."""


class Layer(nn.Module):
    """Attention, then a dense MLP and the experts side by side; one output scalar per mode."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(config, layer)
        self.mlp = GatedMLP(width, config.intermediate_size)
        self.router = Router(config)
        self.experts = Experts(config)
        self.input_norm = RMSNorm(width, eps)
        self.post_attention_norm = RMSNorm(width, eps)
        self.pre_feedforward_norm = RMSNorm(width, eps)
        self.pre_feedforward_norm_2 = RMSNorm(width, eps)
        self.post_feedforward_norm = RMSNorm(width, eps)
        self.post_feedforward_norm_1 = RMSNorm(width, eps)
        self.post_feedforward_norm_2 = RMSNorm(width, eps)
        self.encode_scalar = nn.Parameter(torch.ones(1))
        self.denoise_scalar = nn.Parameter(torch.ones(1))

    def forward(
        self,
        h: Tensor,  # [N, D]
        table: tuple[Tensor, Tensor],  # cos, sin [N, 1, hd]
        context: AttentionContext,
        denoise: Tensor | bool,  # [N, 1] bool, or one mode for all rows
    ) -> Tensor:  # [N, D]
        h = h + self.post_attention_norm(self.attention(self.input_norm(h), table, context))
        dense = self.post_feedforward_norm_1(self.mlp(self.pre_feedforward_norm(h)))
        # The router sees the raw residual, the experts a normed one.
        moe = self.experts(self.pre_feedforward_norm_2(h), *self.router(h))
        moe = self.post_feedforward_norm_2(moe)
        h = h + self.post_feedforward_norm(dense + moe)
        if isinstance(denoise, bool):
            return h * (self.denoise_scalar if denoise else self.encode_scalar)
        return h * torch.where(denoise, self.denoise_scalar, self.encode_scalar)


class DiffusionGemma(nn.Module):
    """The network. Parameters are uninitialised until loaded or `reset_parameters` is called.

    Attributes:
        head: the tied embedding as the last layer: logits, tokens, soft embedding.
        kernels: the part, the name and the reason of every choice of `choose_kernels`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.self_conditioning = SelfConditioning(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.choose_kernels(torch.device("cpu"), torch.float32, grad=True)

    def choose_kernels(
        self, device: torch.device, dtype: torch.dtype, *, grad: bool = False
    ) -> None:
        """Choose how every part computes; once all modules are in their places.

        A fresh network computes in ways that fit any device and have gradients.

        Args:
            device, dtype: of the weights, which need not be there yet.
            grad: whether gradients are wanted.
        """
        self.head = Head(self.embed, self.config.final_logit_softcapping, device=device)
        self.attention_kernel, why = choose_attention(dtype, device, grad)
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]
        experts = {layer.experts.choose(device, dtype, grad): None for layer in layers}
        self.kernels = (
            *(("experts", *chosen) for chosen in experts),
            ("head", self.head.kernel, self.head.reason),
            ("attention", self.attention_kernel, why),
        )

    # -- parts ---------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """That of the activations."""
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.device

    def run(
        self,
        x: Tensor,  # [N, D]
        positions: Tensor,  # [N] int
        context: AttentionContext,
        denoise: Tensor | bool,  # [N, 1] bool, or one mode for all
    ) -> Tensor:
        """All layers and the final norm over packed rows: [N, D]."""
        tables = {
            "sliding_attention": self._table(self.config.sliding, positions),
            "full_attention": self._table(self.config.full, positions),
        }
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = layer(x, tables[kind], context, denoise)
        out: Tensor = self.norm(x)
        return out

    def _table(self, shape: AttentionShape, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_table(rotary_frequencies(shape), positions, self.dtype)

    # -- the two modes -------------------------------------------------------------------------

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens each.

        Raises:
            InvalidRequest: `max_length` is beyond the model's positions.
        """
        if max_length > self.config.max_position_embeddings:
            raise InvalidRequest(
                f"max_length {max_length} is beyond the model's "
                f"{self.config.max_position_embeddings} positions; ask for fewer"
            )
        most_new = max(PREFILL_CHUNK, self.config.canvas_length)
        return Cache(self.config, batch_size, max_length, most_new, self.dtype, self.device)

    def forward_rows(self, parts: Sequence[Part]) -> list[Tensor]:
        """One forward over rows in any phase.

        Args:
            parts: see `Part`; one per row.

        Returns:
            Hidden states after the final norm, [T, D] for each row. Encoded tokens are in their
            caches.

        Raises:
            InvalidRequest: a row would outgrow its cache.
        """
        inputs, positions, modes, segments = [], [], [], []
        for cache, ids, denoise, soft in parts:
            end = cache.length + len(ids)
            if end > cache.max_length:
                raise InvalidRequest(f"{end} tokens do not fit a cache of {cache.max_length}")
            if not denoise and self.config.image_token_id is not None:
                ids = ids.masked_fill(ids == self.config.image_token_id, self.config.pad_token_id)
            embedding = self.head.embed(ids)
            if denoise:
                zero = torch.zeros_like(embedding) if soft is None else soft
                embedding = self.self_conditioning(embedding, zero)
            inputs.append(embedding)
            positions.append(torch.arange(cache.length, end, device=self.device))
            modes.append(torch.full((len(ids), 1), denoise, device=self.device))
            segments.append(AttentionSpan(cache, len(ids), denoise))
        # Elementwise kernels take a scalar path, which rounds in another way, for the numbers after
        # the last whole vector: without padding, a row's bits would depend on how many rows follow.
        missing = -sum(s.length for s in segments) % ROWS if self._exact() else 0
        if missing:
            inputs.append(inputs[0].new_zeros(missing, inputs[0].shape[1]))
            positions.append(positions[0].new_zeros(missing))
            modes.append(modes[0].new_zeros(missing, 1))
        context = CachedContext(self.config, segments, self.attention_kernel)
        out = self.run(torch.cat(inputs), torch.cat(positions), context, torch.cat(modes))
        for cache, ids, denoise, _ in parts:
            if not denoise:
                cache.length += len(ids)
        return list(torch.split(out[: len(out) - missing], [s.length for s in segments]))

    def _exact(self) -> bool:
        """Whether the same request must give the same bits in any batch: fp32 on a CPU."""
        return self.dtype == torch.float32 and self.device.type == "cpu"

    def encode(
        self, token_ids: Tensor, cache: Cache, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Causal pass that appends to the cache.

        Args:
            token_ids: int [B, T].
            cache: of B rows.
            lengths: how many leading tokens of each row are real (rows right-padded); None: all.

        Returns:
            [B, T, D]; rows beyond a row's length are zero.
        """
        batch, width = token_ids.shape
        lengths = [width] * batch if lengths is None else list(lengths)
        out = torch.zeros(
            batch, width, self.config.hidden_size, dtype=self.dtype, device=self.device
        )
        for low in range(0, max(lengths, default=0), PREFILL_CHUNK):
            live = [b for b in range(batch) if lengths[b] > low]
            ends = [min(lengths[b], low + PREFILL_CHUNK) for b in live]
            parts: list[Part] = [
                (cache.rows[b].view(), token_ids[b, low:end], False, None)
                for b, end in zip(live, ends, strict=True)
            ]
            for b, end, hidden in zip(live, ends, self.forward_rows(parts), strict=True):
                out[b, low:end] = hidden
                cache.rows[b].length += end - low
                cache.rows[b].stored += end - low
        return out

    def denoise(self, canvas_ids: Tensor, cache: Cache, soft: Tensor | None = None) -> Tensor:
        """Bidirectional pass over a canvas; never changes the cache.

        Args:
            canvas_ids: int [B, C].
            cache: of B rows; the canvas follows the cached tokens.
            soft: [B, C, D] of `Head.soft_embedding`, or None at the first step of a canvas.

        Returns:
            [B, C, D] after the final norm.
        """
        rows = range(canvas_ids.shape[0])
        return torch.stack(
            self.forward_rows(
                [
                    (cache.rows[b].view(), canvas_ids[b], True, None if soft is None else soft[b])
                    for b in rows
                ]
            )
        )

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Fresh random weights: normal matrices of std fan_in^-0.5, norms and scalars at one."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            std = parameter.shape[-1] ** -0.5
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(noise)
