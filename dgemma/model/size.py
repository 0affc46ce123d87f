"""How big a model is: parameters, bytes at each precision, cache per token, memory of a run.

Everything is computed from the config by building the network on the meta device; nothing is
typed in. Knows nothing about files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dgemma.errors import InvalidRequest
from dgemma.kernels.attention import FEWEST, SCORES
from dgemma.kernels.e4m3 import choose_cache
from dgemma.kernels.experts import choose_experts
from dgemma.kernels.head_tiles import TILE_ELEMENTS
from dgemma.kernels.sampling import BLOCK
from dgemma.model.attention import QUERY_BLOCK
from dgemma.model.cache import CacheDtypes, cache_dtypes
from dgemma.model.config import LayerType, ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.types import PAGE

BYTES = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "4-bit": 0.5}
"""Bytes per parameter of each precision, scales not counted."""

KEPT, KEPT_16_BIT = 24 << 20, 196 << 20
"""Bytes that the matrix libraries keep for themselves: measured with the mini shape. In 16 bit they
keep a compiled product for each number of rows that an expert has had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Counts of the text part; the tied embedding counts once.

    Attributes:
        parameters: all.
        active: those that one token meets: all but the experts it is not routed to.
        cache_fixed: numbers cached for good in sliding layers once the window is full.
        cache_per_token: numbers cached per token in full layers.
    """

    parameters: int
    active: int
    cache_fixed: int
    cache_per_token: int

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all weights in a precision of `BYTES`."""
        return int(self.parameters * BYTES[precision])

    def cache_bytes(self, tokens: int, item_bytes: int, window: int) -> int:
        """Bytes of keys and values of one request after `tokens` tokens."""
        sliding = self.cache_fixed * min(tokens, window - 1) // max(1, window - 1)
        return (sliding + self.cache_per_token * tokens) * item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Most memory that a run takes, in bytes, by its purpose.

    Attributes:
        weights: of the text part, and the copy of the experts that a kernel keeps.
        cache: the pages that the requests have written to at the end of their first canvas.
        work: activations of the widest forward, and the scratch memory of the kernels.
    """

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        """All of it, without what Python and torch themselves take."""
        return self.weights + self.cache + self.work


def peak(
    config: ModelConfig,
    dtype: torch.dtype,
    prompt: int,
    batch: int = 1,
    chunk: int = 1024,
    sliding_pages: int | None = None,
    cache_dtype: str = "auto",
    room: float = 0.0,
) -> Peak:
    """Predict the memory of a run on a CPU.

    Args:
        dtype: of weights, activations and cache.
        cache_dtype: see `choose_cache`.
        prompt: tokens of each request's prompt.
        batch: requests that run side by side.
        chunk: prompt tokens that one forward encodes of a request.
        sliding_pages: those that an engine has for sliding layers; None: as many as are of use.
            Tokens before the window stay, for later requests, until they have to make room.
        room: see `choose_experts`, whose kernel may keep a copy of the experts.
    """
    item, width, canvas = dtype.itemsize, config.hidden_size, config.canvas_length
    rows = batch * (canvas + min(prompt, chunk))  # the first step goes with the last piece
    heads = max(
        shape.head_dim * (config.num_attention_heads + 2 * shape.num_key_value_heads)
        for shape in (config.sliding, config.full)
    )
    inner, top_k = config.moe_intermediate_size, config.top_k_experts
    half = dtype != torch.float32  # these kernels keep scratch memory, those of fp32 do not
    routed = rows * top_k * (width + 3 * inner) * item * half
    layer = rows * (6 * width + 3 * heads + 3 * config.intermediate_size) * item
    tile = min(TILE_ELEMENTS, batch * canvas * config.vocab_size)
    words = tile * (8 + 2 * item) + batch * canvas * width * (4 + 3 * item)
    words += 60 * (batch * canvas * config.vocab_size // BLOCK)
    scores = 2 * _scores(config, prompt) * item * half
    work = routed + scores + layer + words if half else max(layer, words)
    dtypes = asked_dtypes(dtype, cache_dtype)
    pages = page_bytes(config, dtypes)
    blocks = -(-(prompt + canvas) // PAGE)
    if dtypes["full_attention"] != dtype:  # one request's keys of a layer are unpacked at a time
        whole = page_bytes(config, cache_dtypes(dtype))["full_attention"]
        work += blocks * whole // max(1, config.layer_types.count("full_attention"))
    if sliding_pages is None:
        sliding_pages = page_counts(config, dtypes, None, 32, chunk)[1]
    sliding = min(batch * blocks, sliding_pages)
    cpu = torch.device("cpu")
    kernel = choose_experts(config.num_experts, inner, dtype, cpu, room=room)[0]
    copied = config.num_layers * config.num_experts * 3 * inner * width
    return Peak(
        weights=(measure(config).parameters + copied * (kernel == "prepacked")) * item,
        cache=batch * blocks * pages["full_attention"] + sliding * pages["sliding_attention"],
        work=work + (KEPT_16_BIT if half else KEPT),
    )


def _scores(config: ModelConfig, prompt: int) -> int:
    """Most scores of a key head that `kernels.attention.products` holds at a time."""
    queries = max(config.canvas_length, min(prompt, QUERY_BLOCK))
    window = min(prompt, config.sliding_window - 1)
    most = 0
    for shape, keys in ((config.sliding, window), (config.full, prompt)):
        row = config.num_attention_heads // shape.num_key_value_heads * (keys + queries)
        most = max(most, min(queries * row, max(SCORES, FEWEST * row)))
    return most


def asked_dtypes(dtype: torch.dtype, cache_dtype: str) -> CacheDtypes:
    """Of the keys and values of a model of `dtype`; see `choose_cache`."""
    return cache_dtypes(dtype, choose_cache(dtype, cache_dtype)[0])


def page_bytes(config: ModelConfig, dtypes: CacheDtypes) -> dict[LayerType, int]:
    """Bytes of a page of the engine's memory in all layers of each kind together."""
    out: dict[LayerType, int] = {"full_attention": 0, "sliding_attention": 0}
    for layer, kind in enumerate(config.layer_types):
        shape = config.attention(layer)
        out[kind] += PAGE * 2 * shape.num_key_value_heads * shape.head_dim * dtypes[kind].itemsize
    return out


def page_counts(
    config: ModelConfig, dtypes: CacheDtypes, budget: int | None, running: int, chunk: int
) -> tuple[int, int]:
    """How many pages the full and the sliding layers get.

    Args:
        budget: bytes for both together; None: as many as could ever be of use.
        running: requests that run side by side.
        chunk: prompt tokens that one forward encodes of a request.

    Raises:
        InvalidRequest: the budget does not suffice for one short request.
    """
    one = page_bytes(config, dtypes)
    context = -(-config.max_position_embeddings // PAGE)
    window = window_pages(config, chunk)
    # Twice as much as runs, so that finished requests stay cached; a window more often still: it
    # makes a cached prompt of use at more than its end.
    full = 2 * running * context
    sliding = min(full, 4 * running * window)
    if budget is None:
        return full, sliding
    least = window * one["sliding_attention"] + window * one["full_attention"]
    if budget < least:
        raise InvalidRequest(
            f"{budget / 1e6:.1f} MB for keys and values are too few for this model; give it at "
            f"least {least / 1e6:.1f} MB (cache_bytes)"
        )
    share = min(1.0, budget / (full * one["full_attention"] + sliding * one["sliding_attention"]))
    sliding = max(window, int(sliding * share))
    rest = budget - sliding * one["sliding_attention"]
    if one["full_attention"]:
        full = min(full, max(window, rest // one["full_attention"]))
    return full, sliding


def window_pages(config: ModelConfig, chunk: int) -> int:
    """Most pages of the sliding layers that one request needs, see `page_counts`."""
    step = chunk + config.canvas_length
    context = -(-config.max_position_embeddings // PAGE)
    return min(context, -(-(config.sliding_window - 1 + step) // PAGE) + 1)


def measure(config: ModelConfig) -> Size:
    """Count a config."""
    with torch.device("meta"):
        model = DiffusionGemma(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    idle = experts - experts * config.top_k_experts // config.num_experts
    numbers = page_bytes(config, cache_dtypes(torch.int8))
    return Size(
        parameters=total,
        active=total - idle,
        cache_fixed=numbers["sliding_attention"] // PAGE * (config.sliding_window - 1),
        cache_per_token=numbers["full_attention"] // PAGE,
    )
