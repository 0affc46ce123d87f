"""Ceilings of the machine: copy bandwidth, matrix rate, and the matrix products of one step alone.

The products are timed with torch.matmul on preallocated operands at the step's exact row counts,
each the fastest way that torch has for it. torch offers nothing faster, so a step is compared with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma.bench.clock import timed_ms
from dgemma.bench.stats import median
from dgemma.model.transformer import DiffusionGemma

COPY_BYTES = 1 << 29
RATE_SHAPE = (256, 2816, 4096)
"""Rows, inner and columns: a canvas by the query projection of the released model."""

CUDA_RATE_SHAPE = (8192, 8192, 8192)

TILES = (4096, 8192, 16384, 32768)
"""Widths of the vocabulary that are tried beside the whole of it."""

REPEATS = 5


@dataclass(frozen=True, slots=True)
class Product:
    """A group of products that a step makes: [rows, inner] x [inner, columns], once per entry.

    Attributes:
        part: attention, dense, experts or vocabulary.
        name: which one.
        flop: floating point operations of all entries.
        ms: median time of all entries, the fastest way.
        way: which way that was.
    """

    part: str
    name: str
    flop: float
    ms: float
    way: str


def copy_rate(device: torch.device, size: int = COPY_BYTES) -> float:
    """GB/s of a copy, read and written bytes together."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(timed_ms(lambda: target.copy_(source), device, REPEATS)) / 1e6


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of one matrix product."""
    rows, inner, columns = CUDA_RATE_SHAPE if device.type == "cuda" else RATE_SHAPE
    x, w = _fill((rows, inner), dtype, device), _fill((columns, inner), dtype, device)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    best = min(timed_ms(lambda: torch.matmul(x, w.T, out=out), device, REPEATS))
    return 2 * rows * inner * columns / best / 1e6


def products(
    model: DiffusionGemma, rows: int, keys: dict[int, int], routed: Sequence[Sequence[int]]
) -> list[Product]:
    """Time every matrix product of a step.

    Args:
        model: on its device.
        rows: of the forward: canvases x their length.
        keys: layer -> how many keys each canvas sees, its own included.
        routed: layer -> rows that each expert gets.
    """
    out = []
    canvas, like = model.config.canvas_length, model.embed.weight
    for number, layer in enumerate(model.layers):
        attention: Any = layer.attention
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if getattr(attention, name) is not None:
                weight = _plain(getattr(attention, name), "weight", like)
                out.append(_linear("attention", f"layer {number} {name}", weight, rows))
        out += _scores(model, number, rows // canvas, canvas, keys[number])
        mlp: Any = layer.mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = _plain(getattr(mlp, name), "weight", like)
            out.append(_linear("dense", f"layer {number} {name}", weight, rows))
        router: Any = layer.router
        weight = _plain(router.proj, "weight", like)
        out.append(_linear("experts", f"layer {number} router", weight, rows))
        experts: Any = layer.experts
        for name in ("gate_up_proj", "down_proj"):
            stack = _plain(experts, name, like)
            out.append(_experts(f"layer {number} {name}", stack, routed[number]))
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = _plain(getattr(model.self_conditioning, name), "weight", like)
        out.append(_linear("dense", f"self-conditioning {name}", weight, rows))
    return [*out, *_vocabulary(model.embed.tile(0, model.embed.size), rows)]


def _plain(module: Any, leaf: str, like: Tensor) -> Tensor:
    """A weight; for a packed one others of its shape, in the dtype of the activations."""
    weight = getattr(module, leaf)
    if isinstance(weight, Tensor):
        return weight
    return _fill(module.shapes[leaf], like.dtype, like.device)


def _fill(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers: subnormal or zero operands would be slower or faster than real ones."""
    out = torch.empty(*shape, dtype=dtype, device=device)
    return out.normal_(0, shape[-1] ** -0.5)


def _fastest(
    part: str, name: str, flop: float, ways: Iterator[tuple[str, Callable[[], Any]]], like: Tensor
) -> Product:
    """The way with the least median; each is dropped before the next is made, to save memory."""
    found = []
    for way, action in ways:
        found.append((median(timed_ms(action, like.device, REPEATS)), way))
        del action
    best, way = min(found)
    return Product(part, name, flop, best, way)


def _linear(part: str, name: str, weight: Tensor, rows: int) -> Product:
    """[rows, K] x [K, M], the weight as stored or transposed beforehand."""
    columns, inner = weight.shape
    x = _fill((rows, inner), weight.dtype, weight.device)
    out = weight.new_empty(rows, columns)

    def ways() -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "as stored", lambda: torch.matmul(x, weight.T, out=out)
        turned = weight.T.contiguous()
        yield "transposed", lambda: torch.matmul(x, turned, out=out)

    return _fastest(part, name, 2.0 * rows * inner * columns, ways(), weight)


def _scores(
    model: DiffusionGemma, number: int, batch: int, canvas: int, keys: int
) -> list[Product]:
    """Queries by keys and scores by values, the query heads of a key head as its rows."""
    config = model.config
    shape = config.attention(number)
    heads, width = shape.num_key_value_heads, shape.head_dim
    rows = config.num_attention_heads // heads * canvas
    weight = model.embed.weight
    out = []
    for name, inner, columns in (("scores", width, keys), ("values", keys, width)):
        left = _fill((batch * heads, rows, inner), weight.dtype, weight.device)
        right = _fill((batch * heads, inner, columns), weight.dtype, weight.device)
        turned = right.transpose(1, 2).contiguous().transpose(1, 2)
        result = weight.new_empty(batch * heads, rows, columns)
        ways = iter(
            [
                ("rows", lambda x=left, y=right, o=result: torch.matmul(x, y, out=o)),
                ("columns", lambda x=left, y=turned, o=result: torch.matmul(x, y, out=o)),
            ]
        )
        flop = 2.0 * batch * heads * rows * inner * columns
        out.append(_fastest("attention", f"layer {number} {name}", flop, ways, weight))
    return out


def _experts(name: str, stack: Tensor, routed: Sequence[int]) -> Product:
    """One product for each expert that has rows, one after the other as they lie in memory."""
    _, columns, inner = stack.shape
    total = sum(routed)
    x = _fill((total, inner), stack.dtype, stack.device)
    out = stack.new_empty(total, columns)
    parts, low = [], 0
    for expert, count in enumerate(routed):
        if count:
            parts.append((expert, slice(low, low + count)))
        low += count

    def all_by(weights: Tensor) -> Callable[[], None]:  # [E, inner, columns]
        def action() -> None:
            for expert, here in parts:
                torch.matmul(x[here], weights[expert], out=out[here])

        return action

    def ways() -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "as stored", all_by(stack.transpose(1, 2))
        yield "transposed", all_by(stack.transpose(1, 2).contiguous())

    return _fastest("experts", name, 2.0 * total * inner * columns, ways(), stack)


def _vocabulary(table: Tensor, rows: int) -> list[Product]:
    """Hidden states by the table, and beliefs by it: whole, or tile by tile."""
    size, width = table.shape
    hidden, belief = (_fill((rows, n), table.dtype, table.device) for n in (width, size))
    logits, soft = torch.empty_like(belief), torch.empty_like(hidden)

    def head(tile: int, columns: Tensor) -> Callable[[], None]:  # [D, V]
        # A tile's logits are used before the next is made, so they share their memory.
        held = logits.view(-1)[: rows * tile].view(rows, tile)

        def action() -> None:
            for low in range(0, size, tile):
                part = columns[:, low : low + tile]
                torch.matmul(hidden, part, out=held[:, : part.shape[1]])

        return action

    def back(tile: int, columns: Tensor) -> Callable[[], None]:  # [D, V]
        pieces = [piece.contiguous() for piece in torch.split(belief, tile, dim=1)]

        def action() -> None:
            for low, piece in zip(range(0, size, tile), pieces, strict=True):
                torch.matmul(piece, columns[:, low : low + tile].T, out=soft)

        return action

    def ways(
        way: Callable[[int, Tensor], Callable[[], None]],
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        for tile in filter(size.__gt__, TILES):
            yield f"tiles of {tile}", way(tile, table.T)
        yield "whole", way(size, table.T)
        yield "transposed", way(size, table.T.contiguous())

    flop = 2.0 * rows * size * width
    return [
        _fastest("vocabulary", "logits", flop, ways(head), table),
        _fastest("vocabulary", "soft embedding", flop, ways(back), table),
    ]
