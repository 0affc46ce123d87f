"""Writes safetensors with one piece in memory at a time.

The library wants all tensors of a file at once. Here the header is made from shapes alone, then
each piece goes to its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma.weights.safetensors import INDEX, SINGLE
from dgemma.weights.source import CODES, DTYPES

WORDS = {kind: word for word, kind in (*reversed(CODES.items()), *DTYPES.items())}
"""The file's word for each dtype."""

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tensors that are made together.

    Attributes:
        stored: what they will be, by their names.
        make: makes them.
    """

    stored: Shapes
    make: Callable[[], Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(kind.itemsize * math.prod(shape) for kind, shape in self.stored.values())


def write_pieces(
    directory: Path, pieces: Sequence[Piece], max_shard_bytes: int,
    progress: Callable[[int, int], None], maker: str = "pt",
) -> None:  # fmt: skip
    """Write one file, or several of about `max_shard_bytes` and an index.

    Args:
        progress: called after each piece with the bytes that are written, and all of them.
        maker: the format that the files' metadata name.
    """
    shards = list(_shards(pieces, max_shard_bytes))
    total, done = sum(piece.nbytes for piece in pieces), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (directory / name).open("wb") as file:
            places = _write_header(file, shard, maker)
            for piece in shard:
                _write_piece(file, piece, places)
                done += piece.nbytes
                progress(done, total)
        weight_map |= dict.fromkeys(places, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX).write_text(text, encoding="utf-8")


def _shards(pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    shard: list[Piece] = []
    filled = 0
    for piece in pieces:
        if shard and filled + piece.nbytes > most:
            yield shard
            shard, filled = [], 0
        shard.append(piece)
        filled += piece.nbytes
    yield shard


def _write_header(file: BinaryIO, shard: Sequence[Piece], maker: str) -> dict[str, int]:
    """Write names and shapes; the place of each tensor in the file.

    The widest numbers come first, so that all of them are aligned.
    """
    stored = [item for piece in shard for item in piece.stored.items()]
    stored.sort(key=lambda item: -item[1][0].itemsize)
    header: dict[str, object] = {"__metadata__": {"format": maker}}
    places, end = {}, 0
    for name, (kind, shape) in stored:
        begin, end = end, end + kind.itemsize * math.prod(shape)
        places[name] = begin
        header[name] = {"dtype": WORDS[kind], "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + begin for name, begin in places.items()}


def _write_piece(file: BinaryIO, piece: Piece, places: Mapping[str, int]) -> None:
    made = piece.make()
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}
    assert found == dict(piece.stored), "other tensors than the header says"
    for name, tensor in made.items():
        file.seek(places[name])
        file.write(as_bytes(tensor).data)


def as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor on a CPU, row by row."""
    found: NDArray[np.uint8] = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return found
