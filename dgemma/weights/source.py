"""The tensors in the files of a checkpoint, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
"""The number formats that need no unpacking: the files' words for them, and torch's."""


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
        dtype: the files' word for its number format, in `DTYPES` or of a packed one.
        shape: as stored.
        nbytes: in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def floating(self) -> bool:
        """Whether it holds plain floating-point numbers."""
        return self.dtype in DTYPES and DTYPES[self.dtype].is_floating_point


class TensorSource(Protocol):
    """Open files and the tensors in them. Knows nothing about the network."""

    path: Path
    """The file or directory, for messages."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Everything they hold, by their own names, in their order."""

    def read(self, name: str, *, keep: bool = True) -> Tensor:
        """The numbers of a tensor as they are stored.

        Args:
            keep: a view of the file, which lasts and shares its mapping with others. False: for
                use at once; the memory that reading takes goes with the tensor.
        """

    def close(self) -> None:
        """Let go of the files; views that are kept stay good."""
