"""A pass, as the scheduler plans it. It must not know tensors (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, field

from dgemma.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence's part of a pass.

    Attributes:
        count: tokens of its context that are encoded.
        denoise: whether its canvas, or all of a race, make a step; with `count`, right after the
            last of them.
        reading: whether these tokens are only proposed: the encoder reads them, and those that
            are not accepted then are encoded again or never.
    """

    sequence: Sequence
    count: int
    denoise: bool
    reading: bool = False

    @property
    def size(self) -> int:
        """Tokens of the pass, those of all canvases of a race."""
        return self.count + (self.sequence.rows * self.sequence.width if self.denoise else 0)

    @property
    def reach(self) -> int:
        """Positions that it adds."""
        return self.count + (self.sequence.width if self.denoise else 0)


@dataclass(slots=True)
class StepPlan:
    """A pass, and the sequences that end before it with the reason why."""

    scheduled: list[Scheduled] = field(default_factory=list)
    failed: dict[Sequence, str] = field(default_factory=dict)
