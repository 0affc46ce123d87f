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
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention import choose_attention
from dgemma.kernels.linear import rows_linear
from dgemma.model.attention import Attention, AttentionContext, AttentionSpan, CachedContext
from dgemma.model.cache import Cache, CacheRow, RowCache
from dgemma.model.config import AttentionShape, ModelConfig
from dgemma.model.layers import (
    Experts,
    GatedMLP,
    RMSNorm,
    Router,
    SelfConditioning,
    rotary_frequencies,
    rotary_table,
)

Part = tuple[CacheRow, Tensor, bool, Tensor | None]
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
    """The network. Parameters are uninitialised until loaded or `reset_parameters` is called."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_kernel = "auto"
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.self_conditioning = SelfConditioning(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    # -- parts ---------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding table, which is that of the activations."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    def embed_scale(self) -> Tensor:
        """sqrt(hidden), rounded to the weights' dtype as the checkpoint was trained."""
        return torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype, device=self.device)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Scaled embeddings of int ids [...] -> [..., D]."""
        return F.embedding(ids, self.embed.weight) * self.embed_scale()

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
        return Cache(
            [RowCache(self.config, max_length, self.dtype, self.device) for _ in range(batch_size)]
        )

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
            embedding = self.embed_tokens(ids)
            if denoise:
                zero = torch.zeros_like(embedding) if soft is None else soft
                embedding = self.self_conditioning(embedding, zero)
            inputs.append(embedding)
            positions.append(torch.arange(cache.length, end, device=self.device))
            modes.append(torch.full((len(ids), 1), denoise, device=self.device))
            segments.append(AttentionSpan(cache, len(ids), denoise))
        # Elementwise kernels take a scalar path for what is left over behind whole vectors, which
        # rounds otherwise: without filling up, a row's bits would depend on how many rows follow.
        missing = -sum(s.length for s in segments) % ROWS if self._exact() else 0
        if missing:
            inputs.append(inputs[0].new_zeros(missing, inputs[0].shape[1]))
            positions.append(positions[0].new_zeros(missing))
            modes.append(modes[0].new_zeros(missing, 1))
        kernel = self.attention_kernel
        if kernel == "auto":
            grad = torch.is_grad_enabled() and self.embed.weight.requires_grad
            kernel, _ = choose_attention(self.dtype, self.device, grad)
        context = CachedContext(self.config, segments, kernel)
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
                (cache.rows[b], token_ids[b, low:end], False, None)
                for b, end in zip(live, ends, strict=True)
            ]
            for b, end, hidden in zip(live, ends, self.forward_rows(parts), strict=True):
                out[b, low:end] = hidden
        return out

    def denoise(self, canvas_ids: Tensor, cache: Cache, soft: Tensor | None = None) -> Tensor:
        """Bidirectional pass over a canvas; never changes the cache.

        Args:
            canvas_ids: int [B, C].
            cache: of B rows; the canvas stands behind the cached tokens.
            soft: [B, C, D] of `soft_embedding`, or None at the first step of a canvas.

        Returns:
            [B, C, D] after the final norm.
        """
        rows = range(canvas_ids.shape[0])
        return torch.stack(
            self.forward_rows(
                [
                    (cache.rows[b], canvas_ids[b], True, None if soft is None else soft[b])
                    for b in rows
                ]
            )
        )

    # -- the head ------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped fp32 logits: [..., D] -> [..., V]."""
        flat = rows_linear(hidden.reshape(-1, hidden.shape[-1]), self.embed.weight)
        cap = self.config.final_logit_softcapping
        return (torch.tanh(flat.float() / cap) * cap).view(*hidden.shape[:-1], -1)

    def soft_embedding(self, tempered_logits: Tensor) -> Tensor:
        """The belief of a step as an embedding: [..., V] -> [..., D].

        The logits are rounded to the weights' dtype before the fp32 softmax, as in the oracle.
        """
        belief = tempered_logits.to(self.dtype).softmax(-1, dtype=torch.float32).to(self.dtype)
        flat = rows_linear(belief.reshape(-1, belief.shape[-1]), self.embed.weight.T)
        return (flat * self.embed_scale()).view(*belief.shape[:-1], -1)

    def use_reference_kernels(self) -> None:
        """Run everything the oracle's eager way: in 16 bit, too, the logits are then its own."""
        self.attention_kernel = "plain"
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.experts.kernel = "sparse"

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
