"""A device that is not there: it counts bytes and copies, and shows a use before its copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POISON = 0xFF
"""A byte that makes NaN of every float: what a buffer holds until its copy was waited for."""


class FakeMover:
    """See `Mover`. A copy happens no sooner than somebody waits for it.

    Attributes:
        allocated: bytes of its memory.
        began, waited: the copies by their number, in order.
        sources: the first tensor of each copy, by its number.
    """

    def __init__(self) -> None:
        self.allocated = 0
        self.began: list[int] = []
        self.waited: list[int] = []
        self.sources: list[Tensor] = []
        self._open: dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]] = {}

    def hold(self, part: Tensor) -> Tensor:
        """See `Mover`."""
        return part.clone()

    def allocate(self, nbytes: int) -> Tensor:
        """See `Mover`."""
        self.allocated += nbytes
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def copy(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> int:
        """See `Mover`."""
        number = len(self.began)
        self.began.append(number)
        self.sources.append(source[0])
        for here in target:
            here.view(torch.uint8).fill_(POISON)
        self._open[number] = source, target
        return number

    def wait(self, copied: int) -> None:
        """See `Mover`."""
        self.waited.append(copied)
        for there, here in zip(*self._open.pop(copied, ((), ())), strict=True):
            here.copy_(there)
