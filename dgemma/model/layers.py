"""The small parts of a network: embedding, norm, rotary angles, MLP, router, experts.

All of them work on flat rows `[N, D]` (N tokens of whatever requests), so a token's result never
depends on its neighbours. Nothing else reads their weights, so that a packed module can take the
place of a plain one. Knows nothing about attention, caches or the two modes.
Source: `transformers` 5.17 `modeling_diffusion_gemma.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.kernels.cuda import cuda_kernels
from dgemma.kernels.experts import EXPERTS, ExpertsKernel, choose_experts, experts_sparse
from dgemma.kernels.linear import rows_linear
from dgemma.kernels.norm import rms_norm
from dgemma.model.config import AttentionShape, ModelConfig


class Linear(nn.Linear):
    """A bias-free linear layer whose rows do not depend on each other, bit for bit in fp32."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [N, in] -> [N, out]
        return rows_linear(x, self.weight)


class Embedding(nn.Module):
    """The plain table of all ids; see `EmbeddingTable` of the kernels."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.weight = nn.Parameter(torch.empty(size, width))
        self._scale: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the table, which is that of the activations."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.weight.device

    def scale(self) -> Tensor:
        """sqrt(D), rounded to the weights' dtype as the checkpoint was trained."""
        made = self._scale
        if made is None or made.dtype != self.dtype or made.device != self.device:
            with torch.inference_mode(False):  # training may use it as well
                made = torch.tensor(self.width**0.5, dtype=self.dtype, device=self.device)
            self._scale = made
        return made

    def rows(self, ids: Tensor) -> Tensor:  # [...] -> [..., D]
        return F.embedding(ids, self.weight)

    def tile(self, low: int, high: int) -> Tensor:  # [high - low, D]
        # A slice of everything would copy its whole gradient.
        return self.weight if high - low == self.size else self.weight[low:high]


class RMSNorm(nn.Module):
    """`x * (mean(x^2) + eps)^-0.5 * weight` in fp32, cast back; no weight when `scale` is False."""

    def __init__(self, width: int, eps: float, scale: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if scale else None

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> [..., width]
        return rms_norm(x, self.weight, self.eps)


def rotary_frequencies(shape: AttentionShape) -> Tensor:
    """fp32 [head_dim / 2]: theta^(-2k/head_dim) for the rotating pairs, zero for the rest."""
    pairs = shape.head_dim // 2
    rotating = int(shape.partial_rotary_factor * shape.head_dim // 2)
    exponent = torch.arange(0, 2 * rotating, 2, dtype=torch.int64).float() / shape.head_dim
    return torch.cat((1.0 / (shape.rope_theta**exponent), torch.zeros(pairs - rotating)))


def rotary_table(
    frequencies: Tensor, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, each [N, 1, head_dim], of fp32 angles, cast to `dtype`.

    Args:
        frequencies: fp32 [head_dim / 2].
        positions: int [N].
    """
    angles = positions.float()[:, None] * frequencies.to(positions.device)[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (k, k + head_dim/2) of `x` [N, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class GatedMLP(nn.Module):
    """`down(gelu_tanh(gate(x)) * up(x))`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:  # [N, D] -> [N, D]
        out: Tensor = self.down_proj(
            F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        )
        return out


class Router(nn.Module):
    """Picks the top-k experts of each token; the weights are fp32 and sum to one before scaling."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.top_k_experts
        self.root = config.hidden_size**-0.5
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, scale=False)
        self.proj = Linear(config.hidden_size, config.num_experts)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] -> expert ids int64 [N, K] and fp32 weights [N, K]."""
        scores = self.proj(self.norm(residual) * self.scale * self.root)
        weight, index = torch.topk(scores.softmax(-1, dtype=torch.float32), self.top_k, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        return index, weight * self.per_expert_scale[index]


class Experts(nn.Module):
    """The expert matrices, stacked; gate rows come first in `gate_up_proj`."""

    part = "experts"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, inner, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, inner))
        self.kernel: ExpertsKernel = experts_sparse

    def choose(self, device: torch.device, dtype: torch.dtype, grad: bool) -> tuple[str, str]:
        """Choose the kernel, for good: its name and the reason."""
        count, _, inner = self.down_proj.shape
        name, reason = choose_experts(count, inner, dtype, device, grad)
        self.kernel = cuda_kernels().experts if name == "triton" else EXPERTS[name]
        return name, reason

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:  # [N, D] -> [N, D]
        return self.kernel(x, index, weight, self.gate_up_proj, self.down_proj)


class SelfConditioning(nn.Module):
    """`post_norm(embedding + down(gelu_tanh(gate(n)) * up(n)))` with `n = pre_norm(soft)`.

    The post-norm applies also when the soft embedding is zero (first step of a canvas).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.pre_norm = RMSNorm(width, config.rms_norm_eps)
        self.post_norm = RMSNorm(width, config.rms_norm_eps, scale=False)
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def forward(self, embedding: Tensor, soft: Tensor) -> Tensor:  # [N, D], [N, D] -> [N, D]
        n = self.pre_norm(soft)
        signal = self.down_proj(F.gelu(self.gate_proj(n), approximate="tanh") * self.up_proj(n))
        out: Tensor = self.post_norm(embedding + signal)
        return out
