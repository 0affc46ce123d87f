"""Masks from lists of ids, packed as those of a request are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from dgemma.diffusion.control import bitset
from dgemma.kernels.controls import Masks


def packed(allowed: Sequence[Iterable[int]], size: int, index: Tensor) -> Masks:
    """One bitset for each list; `index` says which holds in which row."""
    table = np.stack([bitset(tuple(ids), size) for ids in allowed])
    return Masks(torch.from_numpy(table).to(index.device), index)
