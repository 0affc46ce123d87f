"""Writes 16-bit checkpoints: in the released layout, or with the names that MLX's programs use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgemma.weights.names import to_checkpoint
from dgemma.weights.writers.compressed import vision_piece
from dgemma.weights.writers.stream import Piece
from dgemma.weights.writers.tally import Tally
from dgemma.weights.writers.tensors import VISION, Tensors, class_of

MAKERS = {"safetensors": "pt", "mlx": "mlx"}
"""What a checkpoint is converted to, and what its files' metadata call the format."""


def plain_pieces(tensors: Tensors, to: str, tally: Tally) -> Iterator[Piece]:
    """A piece for each tensor.

    Args:
        to: a key of `MAKERS`. MLX has `.weight` behind the names of stacks, too.
        tally: receives the bytes.
    """
    for name, shape in tensors.shapes.items():
        theirs = to_checkpoint(name)
        if to == "mlx" and len(shape) == 3:
            theirs += ".weight"
        piece = Piece({theirs: (tensors.dtype, shape)}, _making(tensors, name, theirs))
        tally.size(class_of(name), tensors.nbytes(name), piece.nbytes)
        yield piece
    for name in tensors.vision:
        piece = vision_piece(tensors, name)
        tally.size(VISION, tensors.source.tensors[name].nbytes, piece.nbytes)
        yield piece


def _making(tensors: Tensors, name: str, theirs: str) -> Callable[[], dict[str, Tensor]]:
    def make() -> dict[str, Tensor]:
        shape = tensors.shapes[name]
        if len(shape) < 3:
            return {theirs: tensors.short(name, tensors.read(name))}
        out = torch.empty(shape, dtype=tensors.dtype)
        for expert in range(shape[0]):
            out[expert] = tensors.short(name, tensors.read(name, expert))
        return {theirs: out}

    return make
