"""DiffusionGemma: one set of weights run in two ways.

    encode   token-causal over prompt and finished canvases; fills the cache
    denoise  bidirectional over a canvas; reads the cache, never changes it

Both are one forward over packed rows `[N, D]`: a `ForwardBatch` holds the tokens of any number of
requests, each in either mode. It must not know sampling, text or files.
Source: DiffusionGemma in `transformers` 5.17 (`modeling_diffusion_gemma.py`), the oracle of the
parity tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention import PAGED, choose_attention, choose_path
from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.head import Head
from dgemma.model.attention import Attention, ReferenceAttention
from dgemma.model.batch import BatchMaker, CachedPath, ForwardBatch
from dgemma.model.cache import Cache, PagedMemory, Segment
from dgemma.model.config import LayerType, ModelConfig
from dgemma.model.layers import (
    Embedding,
    Experts,
    GatedMLP,
    RMSNorm,
    Router,
    SelfConditioning,
    rotary_frequencies,
)
from dgemma.model.paged import PagedAttention

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

    def forward(self, h: Tensor, batch: ForwardBatch) -> Tensor:  # [N, D] -> [N, D]
        h = h + self.post_attention_norm(self.attention(self.input_norm(h), batch))
        dense = self.post_feedforward_norm_1(self.mlp(self.pre_feedforward_norm(h)))
        # The router sees the raw residual, the experts a normed one.
        moe = self.experts(self.pre_feedforward_norm_2(h), *self.router(h))
        moe = self.post_feedforward_norm_2(moe)
        h = h + self.post_feedforward_norm(dense + moe)
        return h * torch.where(batch.denoise, self.denoise_scalar, self.encode_scalar)


class DiffusionGemma(nn.Module):
    """The network. Parameters are uninitialised until loaded or `reset_parameters` is called.

    Attributes:
        head: the tied embedding as the last layer: logits, tokens, soft embedding.
        attention_path: how queries meet keys.
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
        self, device: torch.device, dtype: torch.dtype, *, grad: bool = False,
        attention: str = "auto",
    ) -> None:  # fmt: skip
        """Choose how every part computes; once all modules are in their places.

        A fresh network computes in ways that fit any device and have gradients.

        Args:
            device, dtype: of the weights, which need not be there yet.
            grad: whether gradients are wanted.
            attention: see `choose_path`.

        Raises:
            InvalidRequest, MissingExtra: a path that cannot be taken.
        """
        self.head = Head(self.embed, self.config.final_logit_softcapping, device=device)
        name, why = choose_attention(dtype, device, grad, attention)
        self.attention_path: CachedPath
        if name in PAGED:
            kernel = cuda_kernels().attend if name == "triton" else None
            self.attention_path = PagedAttention(self.config, kernel)
        else:
            self.attention_path = ReferenceAttention(self.config, name)
        self._maker: BatchMaker | None = None
        choosers: list[Any] = [module for module in self.modules() if hasattr(module, "choose")]
        chosen = [(module.part, *module.choose(device, dtype, grad)) for module in choosers]
        self.kernels = (
            *sorted(dict.fromkeys(chosen), key=itemgetter(0)),
            ("head", self.head.kernel, self.head.reason),
            ("attention path", *choose_path(device, grad, attention)),
            ("attention kernel", name, why),
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

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states of all rows after the final norm: [N, D]. Keys are in the memory."""
        x = self._embed(batch)
        for layer in self.layers:
            x = layer(x, batch)
        out: Tensor = self.norm(x)
        return out

    def _embed(self, batch: ForwardBatch) -> Tensor:
        ids, image, soft = batch.ids, self.config.image_token_id, batch.soft
        start = len(ids) if soft is None else len(ids) - len(soft)
        if image is not None and (start or batch.mixed):
            # In a prompt; the features that take its place come as embeddings.
            hidden = (ids == image) & ~batch.denoise[:, 0]
            ids = ids.masked_fill(hidden, self.config.pad_token_id)
        x = self.head.embed(ids)
        if batch.embeddings is not None:
            x = x.index_copy(0, *batch.embeddings)
        if soft is None:
            return x
        own = self.self_conditioning(x[start:], soft)
        if batch.mixed:
            own = torch.where(batch.denoise[start:], own, x[start:])
        return torch.cat((x[:start], own)) if start else own

    def make_batch(self, segments: Sequence[Segment], memory: PagedMemory) -> ForwardBatch:
        """The input of one forward; see `BatchMaker.make`."""
        if self._maker is None or self._maker.path is not self.attention_path:
            like = torch.empty(0, self.config.hidden_size, dtype=self.dtype, device=self.device)
            self._maker = BatchMaker(self.frequencies(), self.attention_path, like)
        return self._maker.make(segments, memory)

    def frequencies(self) -> dict[LayerType, Tensor]:
        """The rotary frequencies of each kind of layer, on the device."""
        return {
            "full_attention": rotary_frequencies(self.config.full).to(self.device),
            "sliding_attention": rotary_frequencies(self.config.sliding).to(self.device),
        }

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
            rows = [cache.rows[b] for b in live]
            batched = self.make_batch(
                [
                    row.segment(token_ids[b, low:end])
                    for row, b, end in zip(rows, live, ends, strict=True)
                ],
                cache.memory,
            )
            found = batched.split(self(batched))
            for row, b, end, hidden in zip(rows, live, ends, found, strict=True):
                out[b, low:end] = hidden
                row.length += end - low
                row.stored += end - low
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
        softs = [None] * len(canvas_ids) if soft is None else soft
        rows = zip(cache.rows, canvas_ids, softs, strict=True)
        batch = self.make_batch([row.segment(ids, True, s) for row, ids, s in rows], cache.memory)
        return torch.stack(batch.split(self(batch)))

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
