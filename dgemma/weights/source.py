"""The tensors in the files of a checkpoint, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dgemma.quant.packed import Format, Packed

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
"""The number formats that need no unpacking: the files' words for them, and torch's."""
CODES = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.uint8, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "I16": torch.int16, "BOOL": torch.bool,
}  # fmt: skip
"""Those that are only ever a part of something packed. Exponents (E8M0) are read as bytes."""


def few(names: Sequence[str], most: int = 20, characters: int = 200) -> str:
    """Names in a line, cut short: a file may hold a million of any length."""
    shown = [
        name if len(name) <= characters else f"{name[:characters]}..." for name in names[:most]
    ]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the files have it.

    Attributes:
        dtype: the files' word for its number format: in `DTYPES`, in `CODES`, or of a packed one.
        shape: as stored; of something packed, that of its numbers.
        nbytes: in the file.
        format: how it is packed; None if it is plain.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    format: Format | None = field(default=None, kw_only=True)

    @property
    def floating(self) -> bool:
        """Whether it holds floating-point numbers, plain or packed."""
        if self.format is not None:
            return True
        return self.dtype in DTYPES and DTYPES[self.dtype].is_floating_point


def stored_dtype(tensor: StoredTensor) -> torch.dtype:
    """Torch's dtype of a tensor that is plain, or a part of something packed."""
    return DTYPES.get(tensor.dtype) or CODES[tensor.dtype]


class TensorSource(Protocol):
    """Open files and the tensors in them. Knows nothing about the network."""

    path: Path
    """The file or directory, for messages."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Everything they hold, by their own names, in their order."""

    def read(self, name: str, *, keep: bool = True) -> Tensor:
        """The numbers of a plain tensor as they are stored.

        Args:
            keep: a view of the file, which lasts and shares its mapping with others. False: for
                use at once; the memory that reading takes goes with the tensor.
        """

    def packed(self, name: str, *, keep: bool = True) -> Packed:
        """A tensor that has a `format`, still packed.

        Args:
            keep: see `read`.
        """

    def packed_like(self, name: str) -> Packed:
        """The same without numbers, on the meta device: nothing is read."""

    def close(self) -> None:
        """Let go of the files; views that are kept stay good."""
