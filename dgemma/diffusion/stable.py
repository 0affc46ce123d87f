"""A prefix that can no longer change: the part of an unfinished canvas that is emitted already.

The released stop rule, position by position: where the argmax is that of the steps before and the
entropy is low, all the way from the first position, the positions are pinned. From then on they
count as a caller's own pins, so emitted tokens stay. After an end id nothing counts.
Knows nothing about how a step is made, nor about who receives the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dgemma.diffusion.canvas import Canvas, CanvasSpec
from dgemma.diffusion.schedule import Schedule

Embed = Callable[[Tensor], Tensor]
"""The soft embedding of a belief that is certain: int64 [N] -> [N, D]."""


def pin_prefix(
    before: Canvas, after: Canvas, schedule: Schedule, spec: CanvasSpec, embed: Embed
) -> Canvas:
    """A canvas after a step with its settled beginning pinned, where the schedule asks for that.

    Where nothing that counts is left open, the canvas is finished.

    Args:
        before, after: the step led from the one to the other.
    """
    if not schedule.stable_prefix or after.failed or after.reason:
        return after
    assert after.argmax is not None and after.entropy is not None and after.soft is not None
    argmax, given = after.argmax, before.controls.pinned
    pins = torch.full_like(argmax, -1) if given is None else given
    unchanged = torch.zeros_like(argmax)
    if before.argmax is not None:
        old = unchanged if before.unchanged is None else before.unchanged
        unchanged = torch.where(argmax == before.argmax, old + 1, 0)
    sure = after.entropy < schedule.confidence_threshold
    settled = (pins >= 0) | (sure & (unchanged >= schedule.stability_threshold))
    count = int(settled.cumprod(-1).sum())
    ids = argmax[:count].tolist()
    end = next((p for p, token in enumerate(ids) if token in spec.end_ids), None)
    if end is not None:
        count = end + 1
    held = pins.clone()
    held[:count] = argmax[:count]
    fresh = held != pins
    return replace(
        after,
        ids=torch.where(held >= 0, held, after.ids),
        soft=torch.where(fresh[:, None], embed(held.clamp(min=0)), after.soft),
        controls=replace(after.controls, pinned=held) if count else after.controls,
        unchanged=unchanged,
        stable=count,
        reason="converged" if end is not None or count == len(held) else "",
    )
