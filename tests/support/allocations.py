"""Counts the bytes of tensors in memory, now and at most; those of mapped files are not counted."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Sees every operation.

    Attributes:
        now, most: bytes of storages that were made since it began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if is_here(x)]
        before = {id(x) if x.is_mkldnn else x.untyped_storage()._cdata for x in given}
        for value in filter(is_here, tree_leaves(out)):
            storage = value if value.is_mkldnn else value.untyped_storage()
            key = id(value) if value.is_mkldnn else storage._cdata
            if key in self._seen or key in before:
                continue
            if value.is_mkldnn:  # what oneDNN has packed in its own way
                size = torch.ops.mkldnn._nbytes(value)
            else:
                size = 0 if func is torch.ops.aten.from_file.default else storage.nbytes()
            self._seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def is_here(value: object) -> bool:
    """Whether it is a tensor with memory."""
    return isinstance(value, Tensor) and not value.is_meta
