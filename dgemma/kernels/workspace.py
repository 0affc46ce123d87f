"""Scratch memory that is kept from step to step.

Fresh pages cost more than many sums over them: the allocator gives large blocks back to the
system, and every new one is filled with zeros by the kernel, page by page. Knows nothing about
its contents.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Workspace(threading.local):
    """Named scratch tensors, one set for each thread."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(
        self, name: str, rows: int, width: int, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """An uninitialised [rows, width] on the device of `like`, in its dtype or another one.

        The next `take` of the name in this thread hands out the same memory.
        """
        key = name, dtype or like.dtype, like.device
        flat = self._flat.get(key)
        if flat is None or flat.numel() < rows * width:
            # A tensor made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                flat = torch.empty(rows * width, dtype=key[1], device=like.device)
            self._flat[key] = flat
        return flat[: rows * width].view(rows, width)


WORKSPACE = Workspace()
"""The one set of the process: kernels run one after the other, so they may share it."""
