"""The block formats that are left to the `gguf` package, an optional extra: grids and rare types.

Its numbers are those of `ggml-quants.c`. It works in numpy on the CPU, one matrix after the other,
some ten times slower than the formats in `gguf_blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma.errors import MissingExtra
from dgemma.quant.gguf_blocks import HALF, Places, finite_blocks
from dgemma.quant.packed import Parts


@dataclass(frozen=True, slots=True)
class LibraryFormat:
    """One block format; see `Format`.

    Attributes:
        name: ggml's word.
        number: ggml's type number.
        size: bytes of a block.
        places: where a block has its scales; see `finite_blocks`.
    """

    name: str
    number: int
    size: int
    places: Places

    def unpack(self, parts: Parts, columns: int) -> Tensor:
        """See `Format`.

        Raises:
            MissingExtra: the package is not installed.
        """
        library, blocks = load_library(), parts["blocks"]
        kind = library.GGMLQuantizationType(self.number)
        matrices = blocks.cpu().reshape(-1, *blocks.shape[-2:])
        found = [
            torch.from_numpy(library.quants.dequantize(one.contiguous().numpy(), kind))
            for one in matrices
        ]
        whole = torch.stack(found).view(*blocks.shape[:-1], -1)
        return whole[..., :columns].to(blocks.device)

    def finite(self, parts: Parts) -> bool:
        """See `finite_blocks`."""
        return finite_blocks(parts["blocks"].reshape(-1, self.size), self.places)


def load_library() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingExtra(
            "this GGUF file has types that the gguf package unpacks: pip install 'dgemma[gguf]', "
            "or take a file in Q4_K_M, Q5_K_M, Q6_K or Q8_0"
        ) from error
    return gguf


LIBRARY = {
    number: LibraryFormat(name, number, size, tuple((at + 1, HALF) for at in halves))
    for number, name, size, halves in (
        (10, "Q2_K", 84, (80, 82)), (11, "Q3_K", 110, (108,)), (16, "IQ2_XXS", 66, (0,)),
        (17, "IQ2_XS", 74, (0,)), (18, "IQ3_XXS", 98, (0,)), (19, "IQ1_S", 50, (0,)),
        (21, "IQ3_S", 110, (0,)), (22, "IQ2_S", 82, (0,)), (23, "IQ4_XS", 136, (0,)),
        (29, "IQ1_M", 56, ()), (34, "TQ1_0", 54, (52,)), (35, "TQ2_0", 66, (64,)),
    )
}  # fmt: skip
"""By ggml's type number. The scale of IQ1_M lies in four pieces, and is not looked at."""
